"""Every kind of image file against what a viewer shows."""

import hashlib
import io
import random
import struct
import sys

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, features

from examples.quickstart.tools.shapes import draw, random_shape
from hypernet.data import image_io
from hypernet.data.image_io import (
    alpha_cells,
    alpha_weights,
    crop_box,
    inspect_image,
    on_background,
    read_image,
    to_pixels,
)
from tests.helpers.encoding import png_without_pixels
from tests.helpers.image_files import HEADS, stored

IMAGE = draw(random_shape(1), 64)


def shown(data, background="white"):
    return np.asarray(on_background(read_image(data), background), np.int16)


def same(data, expected, tolerance=0):
    assert np.abs(shown(data) - np.asarray(expected, np.int16)).max() <= tolerance


@pytest.mark.parametrize(
    "format, tolerance", [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("WEBP", 0), ("GIF", 8), ("JPEG", 60)]
)
def test_formats(format, tolerance):
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95, "subsampling": 0}}
    data = stored(IMAGE, format, **options.get(format, {}))
    same(data, IMAGE, tolerance)
    assert np.abs(shown(data) - np.asarray(IMAGE, np.int16)).mean() < 2


needs_avif = pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")


@needs_avif
def test_avif_is_read_as_viewers_show_it():
    data = stored(IMAGE, "AVIF", quality=100, subsampling="4:4:4")
    same(data, IMAGE, tolerance=8)
    exif = Image.Exif()
    for orientation, size in ((6, (40, 64)), (3, (64, 40))):
        exif[0x0112] = orientation
        turned = stored(IMAGE.resize((64, 40)), "AVIF", quality=100, subsampling="4:4:4", exif=exif)
        expected = IMAGE.resize((64, 40)).transpose(image_io.UPRIGHT[orientation])
        assert read_image(turned).size == size
        same(turned, expected, tolerance=8)
    clear = IMAGE.copy()
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    assert read_image(stored(clear, "AVIF")).mode == "RGBA"
    for cut in (40, 150, len(data) - 3):
        with pytest.raises(ValueError, match=r"damaged.*\(AVIF\)"):
            read_image(data[:cut])


def test_names_the_plugin_that_an_image_needs(monkeypatch):
    image_io.missing_plugin.cache_clear()
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    for kind, package in (("HEIC", "pillow-heif"), ("JPEG XL", "pillow-jxl-plugin")):
        with pytest.raises(ValueError, match=f"^{kind} .*pip install {package}"):
            read_image(HEADS[kind] + bytes(100))
    image_io.missing_plugin.cache_clear()


@pytest.mark.parametrize("module, format", [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL")])
def test_plugins_read_images_as_viewers_show_them(module, format):
    pytest.importorskip(module)
    kind = {"HEIF": "HEIC", "JXL": "JPEG XL"}[format]
    assert image_io.missing_plugin(kind) is None
    data = stored(IMAGE, format, quality=95)
    assert np.abs(shown(data) - np.asarray(IMAGE, np.int16)).mean() < 3
    exif = Image.Exif()
    exif[0x0112] = 6  # the plugin's decoder has turned the image, if its format's own orientation says so
    turned = stored(IMAGE.resize((64, 40)), format, exif=exif.tobytes())
    assert read_image(turned).size == Image.open(io.BytesIO(turned)).size
    for cut in (40, 200, len(data) - 3):
        with pytest.raises(ValueError, match=rf"damaged.*\({kind}\)"):
            read_image(data[:cut])


@pytest.mark.parametrize(
    "data, named",
    [
        (b"\n<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "a video"),
        (b'<?xml version="1.0"?>\n<svg width="1">', "SVG"),
        (b"PK\x03\x04", "an archive"),
        (b"GIF89a", r"damaged.*\(GIF\)"),
        (b"hello", "not an image$"),
    ],
)
def test_says_what_a_file_is_instead_of_an_image(data, named):
    with pytest.raises(ValueError, match=named):
        read_image(data)


def test_reads_the_first_frame_of_an_animation():
    data = stored(
        Image.new("RGB", (8, 8), "red"), "GIF", save_all=True, append_images=[Image.new("RGB", (8, 8), "blue")]
    )
    assert shown(data)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_rotates_images_as_pillow_does(format):
    exif = Image.Exif()
    for orientation in range(1, 10):  # 9 is invalid
        exif[0x0112] = orientation
        data = stored(IMAGE.resize((64, 40)), format, exif=exif)
        expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        assert expected.size == ((40, 64) if orientation in (5, 6, 7, 8) else (64, 40))
        same(data, expected.convert("RGB"))


def test_ignores_odd_metadata():
    small = IMAGE.resize((64, 40))
    odd = {0x011A: (10, b"\xff\xff\xff\xff\0\0\0\0"), 0x0131: (12, b"\0" * 6 + b"\xf8\x7f"), 0x8769: (4, b"\xff" * 4)}
    for tag, (kind, value) in odd.items():  # a resolution of -1/0, a program called NaN, a table that lies nowhere
        exif = b"Exif\0\0" + exif_block(tag, kind, value)
        for format in ("JPEG", "PNG", "WEBP"):
            assert read_image(stored(small, format, exif=exif)).size == (40, 64), (format, hex(tag))
        assert read_image(stored(small, "JPEG", exif=exif[:17])).size == (64, 40)  # cut short
    xmp = stored(small, "TIFF", tiffinfo={0x0112: 6, 0x02BC: 7})  # a number in place of its text
    assert read_image(xmp).size == (40, 64)


def exif_block(tag, kind, value):
    """Return EXIF data with orientation 6 and another tag."""
    entries = {0x0112: (3, struct.pack("<HH", 6, 0)), tag: (kind, value if len(value) == 4 else struct.pack("<I", 38))}
    table = b"".join(struct.pack("<HHI", key, *(entries[key][0], 1)) + entries[key][1] for key in sorted(entries))
    return b"II*\0" + struct.pack("<IH", 8, 2) + table + b"\0\0\0\0" + value


def test_reads_pngs_with_long_profiles_and_texts():
    limits = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + b"\0" * 3_000_000
    same(stored(IMAGE, icc_profile=profile), IMAGE, tolerance=1)
    for add in ("add_text", "add_itxt"):
        texts = PngImagePlugin.PngInfo()
        getattr(texts, add)("workflow", "a node, " * 400_000, zip=True)
        same(stored(IMAGE, pnginfo=texts), IMAGE)
    texts.add_text("bomb", "a" * (image_io.MAX_TEXT_BYTES + 1), zip=True)
    with pytest.raises(ValueError, match="64 MiB"):
        read_image(stored(IMAGE, pnginfo=texts))
    assert limits == (Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_reads_the_photos_of_large_cameras():
    assert 16384 * 12288 < image_io.MAX_PIXELS  # the largest sensor of a phone, which takes seconds here
    found = inspect_image(stored(Image.new("1", (11_648, 8_736)), "TIFF"))
    assert (found["width"], found["height"]) == (11_648, 8_736)
    for sides in ((15_900, 15_900), (100_000, 100_000)):
        with pytest.raises(ValueError, match="250 million pixels"):
            read_image(png_without_pixels(*sides))
    with pytest.raises(ValueError, match="truncated"):  # within the limits
        read_image(png_without_pixels(100, 100))


def test_restores_pillows_limits_after_threads(monkeypatch):
    before, seen = Image.MAX_IMAGE_PIXELS, []
    decode = image_io._decode

    def spy(data):
        seen.append(Image.MAX_IMAGE_PIXELS)
        return decode(data)

    monkeypatch.setattr(image_io, "_decode", spy)
    data = stored(IMAGE)
    assert len(list(image_io.map_in_threads(read_image, [data] * 40))) == 40
    assert set(seen) == {image_io.MAX_PIXELS // 2} and before == Image.MAX_IMAGE_PIXELS


def test_transparency_of_every_kind():
    alpha = Image.linear_gradient("L").resize((64, 64))
    clear = IMAGE.copy()
    clear.putalpha(alpha)
    a = np.asarray(alpha, np.float64)[..., None] / 255
    expected = np.asarray(IMAGE) * a + 255 * (1 - a)
    same(stored(clear), np.round(expected), tolerance=1)
    same(stored(clear, "WEBP", lossless=True, exact=True), np.round(expected), tolerance=1)
    on_blue = np.asarray(IMAGE) * a + np.array([0, 0, 255]) * (1 - a)
    assert np.abs(shown(stored(clear), "#0000ff") - on_blue).max() <= 1

    gray = Image.merge("LA", [IMAGE.convert("L"), alpha])
    expected = np.round(np.asarray(IMAGE.convert("L"))[..., None] * a + 255 * (1 - a)).repeat(3, 2)
    same(stored(gray), expected, tolerance=1)

    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putdata([0, 1])
    assert shown(stored(palette, transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    assert shown(stored(palette, "GIF", transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    keyed = Image.new("RGB", (2, 1), (9, 9, 9))
    keyed.putpixel((1, 0), (7, 7, 7))
    assert shown(stored(keyed, transparency=(9, 9, 9))).tolist() == [[[255, 255, 255], [7, 7, 7]]]

    assert read_image(stored(clear)).mode == "RGBA"
    opaque = IMAGE.copy()
    opaque.putalpha(255)
    assert read_image(stored(opaque)).mode == "RGB"


def test_gray_16_bit_and_cmyk():
    same(stored(IMAGE.convert("L")), IMAGE.convert("L").convert("RGB"))
    same(stored(IMAGE.convert("1")), IMAGE.convert("1").convert("RGB"))
    deep = (np.asarray(IMAGE.convert("L")).astype(np.uint16)) * 257
    same(stored(Image.fromarray(deep)), IMAGE.convert("L").convert("RGB"))
    keyed = stored(Image.fromarray(deep), transparency=int(deep[0, 0]))
    clear = deep == deep[0, 0]
    same(keyed, np.where(clear, 255, deep // 257)[..., None].repeat(3, 2))
    same(stored(Image.fromarray(deep), "TIFF"), IMAGE.convert("L").convert("RGB"))
    same(stored(IMAGE.convert("CMYK"), "TIFF"), IMAGE)
    assert np.abs(shown(stored(IMAGE.convert("CMYK"), "JPEG", quality=95)) - np.asarray(IMAGE, np.int16)).mean() < 4


def test_follows_color_profiles():
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    same(stored(IMAGE, icc_profile=lab.tobytes()), IMAGE)  # a profile for another color space than the file's
    same(stored(IMAGE, icc_profile=b"damaged"), IMAGE)
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same(stored(IMAGE, icc_profile=srgb), IMAGE, tolerance=1)
    swapped = swapped_profile()
    red = Image.new("RGB", (4, 4), (255, 0, 0))
    assert shown(stored(red, icc_profile=swapped))[0, 0].tolist() == pytest.approx([0, 255, 0], abs=3)


def swapped_profile():
    """Return sRGB's profile with the tags of red and green swapped: (255, 0, 0) is green in it."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    at = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(int.from_bytes(data[128:132], "big"))}
    red, green = at[b"rXYZ"], at[b"gXYZ"]
    data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_gives_a_reason_for_unusable_data(monkeypatch):
    whole = stored(IMAGE)
    for data, reason in [
        (b"", "empty"),
        (b"<html>", "not an image"),
        (whole[: len(whole) // 2], "truncated"),
        (stored(IMAGE, "JPEG")[:-200], "truncated"),
        (stored(Image.new("F", (8, 8)), "TIFF"), "floating-point"),
    ]:
        with pytest.raises(ValueError, match=reason):
            inspect_image(data)
    found = inspect_image(whole)
    assert found == {"sha256": hashlib.sha256(whole).hexdigest(), "width": 64, "height": 64, "has_alpha": False}
    monkeypatch.setattr(image_io, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="1 GiB"):
        inspect_image(whole)


@pytest.mark.parametrize("size", [(32, 32), (48, 32), (24, 56), (64, 64)])
@pytest.mark.parametrize("sides, centering", [((64, 40), (0.5, 0.5)), ((33, 64), (0.1, 0.9)), ((100, 100), (0.3, 0))])
def test_crops_equal_pillows(sides, centering, size):
    image = IMAGE.resize(sides)
    expected = np.asarray(ImageOps.fit(image, size, Image.Resampling.BICUBIC, centering=centering), np.float32)
    ours = (to_pixels(image, size, crop_box(*sides, size, centering)).transpose(1, 2, 0) + 1) * 127.5
    assert ours.shape == expected.shape and np.abs(ours - expected).max() < 1.01
    assert (np.abs(ours - expected) > 0.01).mean() < 0.01  # rounding differs now and then


def test_crops_lie_within_the_image():
    rng = random.Random(0)
    for _ in range(20_000):
        width, height = rng.randrange(64, 2000), rng.randrange(64, 2000)
        size, centering = (64 * rng.randrange(1, 20), 64 * rng.randrange(1, 20)), (rng.random(), rng.random())
        left, top, right, bottom = crop_box(width, height, size, centering)
        assert 0 <= left < right <= width and 0 <= top < bottom <= height, (width, height, size)
        assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1])
        assert right - left == pytest.approx(width) or bottom - top == pytest.approx(height)


def test_alpha_weights_equal_a_plain_computation():
    image = IMAGE.resize((48, 32))
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:16, 24:] = 255
    alpha[16:, :24] = 101
    image.putalpha(Image.fromarray(alpha))
    cells = alpha_cells(image, (48, 32), (0, 0, 48, 32), factor=8)
    expected = (
        np.array([[alpha[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].mean() for x in range(6)] for y in range(4)]) / 255
    )
    assert cells.shape == (4, 6) and np.abs(cells - expected).max() < 1e-6
    weights = alpha_weights(cells)
    assert np.abs(weights - (expected - expected.min()) / (expected - expected.min()).mean()).max() < 1e-5
    assert weights.mean() == pytest.approx(1) and weights[0, 0] == 0 and weights[0, 5] > weights[3, 0] > 0
    assert (alpha_weights(np.full((4, 6), 0.3, np.float32)) == 1).all()
    nearly = np.full((4, 6), 254 / 255, np.float32)
    nearly[0, 0] = 1  # rounding in a lossy format, which must not get all the weight
    assert (alpha_weights(nearly) == 1).all()
    assert alpha_cells(IMAGE, (64, 64), (0, 0, 64, 64), 8) is None
