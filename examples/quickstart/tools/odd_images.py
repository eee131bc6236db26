"""Draw a folder of images as users have them: all shapes and kinds, a copy, a plain one, a long caption, broken files.

python examples/quickstart/tools/odd_images.py output/odd_images
python examples/quickstart/tools/odd_images.py output/mixed_images --mixed      # 200 files, in sub-folders, many of them broken
"""

import argparse
import io
import itertools
import random
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.tools.shapes import caption, draw, random_shape

SIZES = {"square": (256, 256), "wide": (480, 240), "tall": (240, 480), "photo": (360, 240), "large": (900, 880)}


def write_odd_images(folder: Path):
    """Write the images and captions, always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = itertools.count()

    def sample():
        shape = random_shape(next(seeds))
        return draw(shape, 256), f"{caption(shape)}, flat, plain, bright"

    def write(name, image, text, **options):
        image.save(folder / name, **options)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")

    for name, (width, height) in SIZES.items():
        image, text = sample()
        side = min(width, height)
        wide = Image.new("RGB", (width, height), image.getpixel((2, 2)))
        wide.paste(image.resize((side, side), Image.Resampling.LANCZOS), ((width - side) // 2, (height - side) // 2))
        write(f"{name}.png", wide, text)

    image, text = sample()
    image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda value: max(0, min(255, 640 - 4 * value))))
    write("clear.png", image, text)
    image, text = sample()
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: to be shown turned by 90 degrees
    write("turned.jpg", image.transpose(Image.Transpose.ROTATE_90), text, exif=exif, quality=95)
    image, text = sample()
    write("print.tif", image.convert("CMYK"), text)
    write("copy of square.jpg", Image.open(folder / "square.png"), "a copy", quality=85)
    image, text = sample()
    write("long.png", image, ", ".join([text] * 3))
    write("flat.png", Image.new("RGB", (256, 256), "navy"), "nothing at all")
    write("tiny.png", sample()[0].resize((48, 48)), "a tiny one")
    (folder / "cut.png").write_bytes(_half((folder / "wide.png").read_bytes()))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.webp").write_bytes(b"<html>not an image</html>")


# --- Many kinds of files, to try what reads them


def _jpeg(image, **options):
    return ".jpg", _stored(image, "JPEG", quality=92, **options)


def _png(image, **options):
    return ".png", _stored(image, "PNG", **options)


def _stored(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _half(data):
    return data[: len(data) // 2]


def _turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _jpeg(image, exif=exif)


def _clear(image):
    image = image.convert("RGBA")
    image.putalpha(Image.radial_gradient("L").resize(image.size))
    return image


def _deep(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


KINDS = [
    *(lambda image, turn=turn: _turned(image, turn) for turn in range(1, 9)),
    lambda image: _jpeg(image.convert("CMYK")),
    lambda image: (".tif", _stored(image.convert("CMYK"), "TIFF")),
    lambda image: (".TIFF", _stored(_deep(image), "TIFF")),
    lambda image: _png(_clear(image)),
    lambda image: (".webp", _stored(_clear(image), "WEBP")),
    lambda image: _png(_clear(image).convert("LA")),
    lambda image: _png(_deep(image)),
    lambda image: _png(image.convert("1")),
    lambda image: _png(image.quantize(16), transparency=0),
    lambda image: _png(image, transparency=image.getpixel((0, 0))),
    lambda image: (".gif", _stored(image, "GIF", save_all=True, append_images=[ImageOps.invert(image)])),
    lambda image: (".bmp", _stored(image, "BMP")),
    lambda image: (".JPEG", _jpeg(image.convert("L"))[1]),
    lambda image: _png(image.resize((17, 13))),
]
BROKEN = {  # what cannot be used: how it is made, and what is to be said of it
    "truncated": (lambda image: (".png", _half(_png(image)[1])), "truncated"),
    "cut short": (lambda image: (".jpg", _jpeg(image)[1][:-400]), "truncated"),
    "empty": (lambda image: (".jpg", b""), "it is empty"),
    "page": (lambda image: (".webp", b"<html>not an image</html>"), "it is not an image"),
    "floats": (lambda image: (".tiff", _stored(image.convert("F"), "TIFF")), "floating-point"),
}
NAMES = ("0012-a cat", "Über größe", "猫と犬", "emoji 🐈", 'it\'s "quoted"', "two.dots", "cat-1", "x" * 200, "-flipped")


def write_mixed_images(folder: Path, count: int = 200) -> dict[str, str]:
    """`count` files of all kinds, shapes and names, always the same; {those that cannot be used: a part of the reason}."""
    rng, refused, subs = random.Random(5), {}, ("", "one", "one/two", "déjà vu")
    for i in range(count):
        parent = folder / subs[i % len(subs)]
        parent.mkdir(parents=True, exist_ok=True)
        width, height = rng.choice([(96, 96), (160, 90), (70, 120), (300, 60), (40, 200), (128, 64)])
        shape = random_shape(i)
        image = ImageOps.fit(draw(shape, 96), (width, height))
        if i == 0:  # 12,000 pixels wide
            image = image.resize((12_000, 400))
        name = f"{NAMES[i // len(subs) % len(NAMES)]} {i}"
        if i < 4 * len(subs):  # four kinds of one name in each folder
            name = "same"
        if i % 13 == 12:
            name = f"{list(BROKEN)[i // 13 % len(BROKEN)]} {i}"
            make, reason = BROKEN[name.rpartition(" ")[0]]
        else:
            make, reason = KINDS[i % len(KINDS)], None
        suffix, data = make(image)
        path = parent / f"{name}{suffix}"
        while path.exists():
            path = path.with_name(f"{path.stem} again{suffix}")
        path.write_bytes(data)
        if reason:
            refused[path.relative_to(folder).as_posix()] = reason
        if i % 5 == 0:
            path.with_suffix(".txt").write_text(f"{caption(shape)}, number {i}", encoding="utf-8")
    return refused


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mixed", action="store_true", help="200 files of all kinds instead")
    args = parser.parse_args()
    (write_mixed_images if args.mixed else write_odd_images)(args.folder)
    print(f"images: {args.folder}")
