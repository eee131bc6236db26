"""One image file: read it as a viewer shows it, inspect it, crop it, turn it into pixels and alpha weights."""

import collections
import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

MAX_PIXELS = 100_000_000  # a panorama of 14,000 x 7,000; what is larger is a mistake, or an attack
MAX_BYTES = 2**30
SRGB = ImageCms.createProfile("sRGB")
warnings.filterwarnings("ignore", module="PIL")  # on large images and odd metadata: nothing that a user can act on


def read_image(data: bytes) -> Image.Image:
    """The first frame as a viewer shows it: upright, in sRGB; mode "RGBA" if any pixel is transparent, else "RGB".

    Raises:
        ValueError: with the reason, if that cannot be done.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("it is larger than 1 GiB")
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise ValueError(f"{image.width}x{image.height} are too many pixels")
        image = ImageOps.exif_transpose(image)
        alpha = _alpha(image) if image.has_transparency_data else None
        image = _to_srgb(image)
    except Image.UnidentifiedImageError:
        raise ValueError("it is empty" if not data else "it is no image") from None
    except Image.DecompressionBombError:
        raise ValueError("it has too many pixels") from None
    except Exception as error:  # decoders let errors of any kind out of a damaged file
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if alpha is not None and alpha.getextrema()[0] < 255:
        image.putalpha(alpha)
    return image


def _alpha(image):
    if image.mode.startswith("I"):  # one of 65536 greys is the clear one
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return image.convert("RGBA").getchannel("A")


def _to_srgb(image):
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip to white
        values = np.asarray(image, np.int64)
        if values.max() > 65535 or values.min() < 0:
            raise ValueError("it has 32 bits per pixel; save it with 8 or 16")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if profile and image.mode not in ("CMYK", "L", "LAB"):
        image = image.convert("RGB")
    if profile:
        try:
            return ImageCms.profileToProfile(image, io.BytesIO(profile), SRGB, outputMode="RGB")
        except (ImageCms.PyCMSError, OSError):  # a damaged profile, or one for other colours: viewers ignore it
            pass
    return image.convert("RGB")


def inspect_image(data: bytes) -> dict:
    """sha256 of the bytes, width and height as shown, whether it has transparency.

    Raises:
        ValueError: as `read_image` does.
    """
    image, digest = read_image(data), hashlib.sha256(data).hexdigest()
    return {"sha256": digest, "width": image.width, "height": image.height, "has_alpha": image.mode == "RGBA"}


def check_color(color: str):
    """Raises: ValueError if Pillow does not know the colour."""
    try:
        opaque = ImageColor.getrgb(color)[3:] in ((), (255,))
    except ValueError:
        opaque = False
    if not opaque:
        raise ValueError(f'{color}: it is no colour; write white, black, gray, "#rrggbb" or another name')


def on_background(image: Image.Image, color: str) -> Image.Image:
    """The picture in mode "RGB", what is transparent in it laid on a background."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")


def crop_box(width: int, height: int, size: tuple[int, int], centering=(0.5, 0.5)) -> tuple[float, ...]:
    """(left, top, right, bottom) of the largest part of a picture that has the aspect of `size`, as ImageOps.fit has it.

    `centering` places it: (0, 0) is top left, (1, 1) bottom right.
    """
    scale = min(width / size[0], height / size[1])
    kept = min(width, size[0] * scale), min(height, size[1] * scale)  # min, since rounding may exceed them
    left, top = (width - kept[0]) * centering[0], (height - kept[1]) * centering[1]
    return left, top, min(width, left + kept[0]), min(height, top + kept[1])


def to_pixels(image: Image.Image, size: tuple[int, int], box) -> np.ndarray:
    """The part `box` of an RGB picture at `size` = (width, height): (3, height, width) float32 in [-1, 1], bicubic."""
    image = image.resize(size, Image.Resampling.BICUBIC, box=box)
    # in this order in memory, too: on the other one, the CPU's convolutions lose two digits
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)) / 127.5 - 1


def alpha_cells(image: Image.Image, size: tuple[int, int], box, factor: int) -> np.ndarray | None:
    """Mean alpha, 0 to 1, of each latent cell (`factor` x `factor` pixels): (height / factor, width / factor) float32;
    None for a picture without transparency."""
    if image.mode != "RGBA":
        return None
    alpha = image.getchannel("A").resize(size, Image.Resampling.BICUBIC, box=box)
    cells = np.asarray(alpha, np.float32).reshape(size[1] // factor, factor, size[0] // factor, factor)
    return cells.mean((1, 3)) / 255


def alpha_weights(cells: np.ndarray) -> np.ndarray:
    """Loss weights of mean 1 from alpha: minus its minimum, divided by its mean, as in the WebUI; uniform alpha is 1."""
    weights = cells - cells.min()
    is_uniform = weights.max() < 2 / 255  # but for rounding
    return np.ones_like(cells) if is_uniform else weights / weights.mean()


def map_in_threads(function, items):
    """`function` of each item, in order, a few ahead of who takes them. (Decoding images lets other threads run.)"""
    workers = min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(workers), collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
