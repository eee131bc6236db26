"""Draw a folder of pictures as users have them: all shapes and kinds, a copy, a flat one, a long caption, broken files.

python examples/quickstart/odd_pictures.py output/odd_pictures
"""

import argparse
import random
from pathlib import Path

from draw import caption, draw, random_scene
from PIL import Image

SHAPES = {"square": (256, 256), "wide": (480, 240), "tall": (240, 480), "photo": (360, 240), "large": (900, 880)}


def write_odd_pictures(folder: Path):
    """The pictures and captions, always the same."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(8)

    def scene():
        drawn = random_scene(rng)
        return draw(drawn, "neon", size=256), f"{caption(drawn)}, neon, glow, night"

    def write(name, image, text, **options):
        image.save(folder / name, **options)
        (folder / name).with_suffix(".txt").write_text(text, encoding="utf-8")

    for name, (width, height) in SHAPES.items():
        image, text = scene()
        side = min(width, height)
        wide = Image.new("RGB", (width, height), image.getpixel((2, 2)))
        wide.paste(image.resize((side, side), Image.Resampling.LANCZOS), ((width - side) // 2, (height - side) // 2))
        write(f"{name}.png", wide, text)

    image, text = scene()
    image.putalpha(Image.radial_gradient("L").resize(image.size).point(lambda value: max(0, min(255, 640 - 4 * value))))
    write("clear.png", image, text)
    image, text = scene()
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: to be shown turned by 90 degrees
    write("turned.jpg", image.transpose(Image.Transpose.ROTATE_90), text, exif=exif, quality=95)
    image, text = scene()
    write("print.tif", image.convert("CMYK"), text)
    write("copy of square.jpg", Image.open(folder / "square.png"), "a copy", quality=85)
    image, text = scene()
    write("long.png", image, ", ".join([text] * 3))
    write("flat.png", Image.new("RGB", (256, 256), "navy"), "nothing at all")
    write("tiny.png", scene()[0].resize((48, 48)), "a tiny one")
    (folder / "cut.png").write_bytes((folder / "wide.png").read_bytes()[:3000])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.webp").write_bytes(b"<html>not an image</html>")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    write_odd_pictures(parser.parse_args().folder)
