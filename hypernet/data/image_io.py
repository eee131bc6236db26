"""Decode an image as a viewer shows it, crop it, and turn it into pixels and alpha weights."""

import collections
import contextlib
import functools
import hashlib
import importlib
import io
import os
import threading
import typing
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageColor, PngImagePlugin, features

from hypernet.utils.errors import reason
from hypernet.utils.file_kinds import HEAD, image_kind, other_kind

MAX_PIXELS = 250_000_000  # 1 GB as Pillow holds them; the largest sensors of cameras and phones have 200 million
LARGE_PIXELS = 50_000_000  # larger images are decoded one at a time, since each takes much memory
MAX_BYTES = 2**30
MAX_TEXT_BYTES = 64 * 2**20  # of a color profile or a text in a PNG, decompressed
SRGB = ImageCms.createProfile("sRGB")
UPRIGHT = {  # EXIF orientation -> the transposition that viewers apply
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Kinds that not every Pillow reads -> its feature, the module of the plugin that reads them, how to install either
PLUGINS = {
    "AVIF": ("avif", "pillow_avif", 'pip install "pillow>=11.3"'),
    "HEIC": ("", "pillow_heif", "pip install pillow-heif"),
    "JPEG XL": ("", "pillow_jxl", "pip install pillow-jxl-plugin"),
    "JPEG 2000": ("jpg_2000", "", "pip install --force-reinstall pillow"),
}

Box = tuple[float, float, float, float]  # left, top, right, bottom
Item = typing.TypeVar("Item")
Result = typing.TypeVar("Result")


def read_image(data: bytes) -> Image.Image:
    """Decode the first frame as a viewer shows it: upright and in sRGB.

    Returns:
        An image of mode "RGBA" if any pixel is transparent, else "RGB".

    Raises:
        ValueError: if it cannot be decoded; the message is the reason.
    """
    if len(data) > MAX_BYTES:
        raise ValueError("it is larger than 1 GiB")
    kind = image_kind(data[:HEAD])
    if kind and (command := missing_plugin(kind)):
        raise ValueError(f"{kind} images need a plugin: {command}")
    _ignore_pillow_warnings()
    try:
        with _pillow_limits():
            return _decode(data)
    except Image.UnidentifiedImageError:
        raise ValueError(_describe_unidentified(data, kind)) from None
    except Image.DecompressionBombError:
        raise ValueError(f"it has more than {MAX_PIXELS // 10**6} million pixels") from None
    except Exception as error:  # decoders raise errors of any kind on damaged files
        if kind in PLUGINS and not isinstance(error, _PixelError):  # their own messages are for programmers
            raise ValueError(_describe_unidentified(data, kind)) from None
        too_long = f"its color profile or texts are larger than {MAX_TEXT_BYTES >> 20} MiB"
        raise ValueError(too_long if "MAX_TEXT_" in str(error) else reason(error)) from None


@functools.cache
def missing_plugin(kind: str) -> str | None:
    """Return the command that installs what reads this kind of image; None if nothing is missing.

    Plugins of Pillow are optional. One that is installed is loaded here.
    """
    feature, module, command = PLUGINS.get(kind, ("", "", ""))
    known = {*features.modules, *features.codecs}  # of older versions too, which warn about features that they lack
    if not command or (feature in known and features.check(feature)):
        return None
    if not module:
        return command
    try:
        plugin = importlib.import_module(module)
    except ImportError:
        return command
    if module == "pillow_heif":
        plugin.register_heif_opener()  # the other plugins register themselves
    return None


def _describe_unidentified(data: bytes, kind: str | None) -> str:
    if kind:
        return f"it is a truncated or damaged image ({kind})"
    if not data:
        return "it is empty"
    other = other_kind(data[:HEAD])
    return f"it is not an image but {other}" if other else "it is not an image"


def _decode(data: bytes) -> Image.Image:
    image: Image.Image = Image.open(io.BytesIO(data))
    is_large = image.width * image.height > LARGE_PIXELS
    with _LARGE_IMAGE if is_large else contextlib.nullcontext():
        image = _upright(image)
        alpha = _read_alpha(image) if image.has_transparency_data else None
        image = _to_srgb(image)
        if alpha is not None and alpha.getextrema() != (255, 255):
            image.putalpha(alpha)
    return image


def _upright(image: Image.Image) -> Image.Image:
    """Load an image and apply its EXIF orientation, as `PIL.ImageOps.exif_transpose` does.

    That function also rewrites all other EXIF data, which fails if they are unusual. HEIC and JPEG XL have an
    orientation of their own, which their decoders apply. The plugin for HEIC resets that of EXIF; the one for JPEG XL
    does not. It returns a recompressed JPEG as it was, not rotated.
    """
    try:
        image.load()  # also rotates a TIFF, and reads metadata at the end of a PNG
    except Exception:
        if image.format != "TIFF" or getattr(image, "tile", True):
            raise
        # otherwise the pixels have been decoded, and only the metadata are unusual
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        return image
    try:
        turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data raise errors of any kind
        return image
    return image if turn is None else image.transpose(turn)


# --- Pillow's global settings


_LARGE_IMAGE = threading.Lock()
_LIMITS_LOCK = threading.Lock()
_limits_before: list[tuple[int | None, int, int]] = []  # one item per thread that is decoding an image


@contextlib.contextmanager
def _pillow_limits() -> Iterator[None]:
    """Apply this module's limits while any thread decodes an image, then restore Pillow's own."""
    with _LIMITS_LOCK:
        before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
        _limits_before.append(_limits_before[0] if _limits_before else before)
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow refuses more than twice as many
        PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT_BYTES, 4 * MAX_TEXT_BYTES
    try:
        yield
    finally:
        with _LIMITS_LOCK:
            before = _limits_before.pop()
            if not _limits_before:
                Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = before


@functools.cache
def _ignore_pillow_warnings() -> None:
    """Ignore warnings on large images and odd metadata, for good: `catch_warnings` is not thread-safe."""
    warnings.filterwarnings("ignore", module="PIL")


class _PixelError(ValueError):
    """The pixels were decoded but are not colors."""


def _read_alpha(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, one value of which is transparent
        return Image.fromarray(np.where(np.asarray(image) == image.info["transparency"], 0, 255).astype(np.uint8))
    return (image if "A" in image.getbands() else image.convert("RGBA")).getchannel("A")


def _to_srgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would clip to white
        values = np.asarray(image, np.int64)
        if values.max() > 65535 or values.min() < 0:
            raise _PixelError("it has 32 bits per pixel; save it with 8 or 16")
        return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise _PixelError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    profile = image.info.get("icc_profile")
    if profile and image.mode not in ("CMYK", "L", "LAB"):
        image = image.convert("RGB")
    if profile:
        try:
            converted = ImageCms.profileToProfile(image, io.BytesIO(profile), SRGB, outputMode="RGB")
            return typing.cast(Image.Image, converted)
        except (ImageCms.PyCMSError, OSError):  # a damaged profile or one for another color space: viewers ignore it
            pass
    return image if image.mode == "RGB" else image.convert("RGB")


def inspect_image(data: bytes) -> dict[str, typing.Any]:
    """Return the SHA-256 of the data as "sha256", the "width" and "height" as shown, and "has_alpha".

    Raises:
        ValueError: as `read_image` does.
    """
    image, digest = read_image(data), hashlib.sha256(data).hexdigest()
    return {"sha256": digest, "width": image.width, "height": image.height, "has_alpha": image.mode == "RGBA"}


def check_color(color: str) -> None:
    """Raise ValueError if Pillow does not know the color, or if it is not opaque."""
    try:
        opaque = ImageColor.getrgb(color)[3:] in ((), (255,))
    except ValueError:
        opaque = False
    if not opaque:
        raise ValueError(f'{color}: it is not a color; write white, black, gray, "#rrggbb" or another name')


def on_background(image: Image.Image, color: str) -> Image.Image:
    """Return the image in mode "RGB", composited over a background color."""
    if image.mode == "RGB":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, color), image).convert("RGB")


def crop_box(width: int, height: int, size: tuple[int, int], centering: tuple[float, float] = (0.5, 0.5)) -> Box:
    """Return the largest box of the aspect ratio of `size` within an image, the one `PIL.ImageOps.fit` crops to.

    Args:
        centering: position of the box: (0, 0) is top left, (1, 1) bottom right.
    """
    scale = min(width / size[0], height / size[1])
    kept = min(width, size[0] * scale), min(height, size[1] * scale)  # min, since rounding may exceed them
    left, top = (width - kept[0]) * centering[0], (height - kept[1]) * centering[1]
    return left, top, min(width, left + kept[0]), min(height, top + kept[1])


def to_pixels(image: Image.Image, size: tuple[int, int], box: Box) -> np.ndarray:
    """Crop an RGB image to `box` and resize it (bicubic) to `size` = (width, height).

    Returns:
        (3, height, width) float32 in [-1, 1].
    """
    image = image.resize(size, Image.Resampling.BICUBIC, box=box)
    # contiguous: on a transposed view, convolutions on the CPU lose two digits
    return np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)) / 127.5 - 1


def alpha_cells(image: Image.Image, size: tuple[int, int], box: Box, factor: int) -> np.ndarray | None:
    """Return the mean alpha, 0 to 1, of each latent cell (`factor` x `factor` pixels).

    Returns:
        (height / factor, width / factor) float32; None for an image without transparency.
    """
    if image.mode != "RGBA":
        return None
    alpha = image.getchannel("A").resize(size, Image.Resampling.BICUBIC, box=box)
    cells = np.asarray(alpha, np.float32).reshape(size[1] // factor, factor, size[0] // factor, factor)
    return cells.mean((1, 3)) / 255


def alpha_weights(cells: np.ndarray) -> np.ndarray:
    """Return loss weights of mean 1: alpha minus its minimum, divided by its mean, as in the WebUI.

    Uniform alpha gives ones.
    """
    weights = cells - cells.min()
    is_uniform = weights.max() < 2 / 255  # up to rounding
    return np.ones_like(cells) if is_uniform else weights / weights.mean()


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Yield `function(item)` for each item in order, computing a few ahead. (Decoding images releases the GIL.)

    The processes of a run on one machine divide its cores, and so also the memory for images decoded ahead.
    """
    workers = max(1, min(8, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    pool, ahead = ThreadPoolExecutor(workers), collections.deque[Future[Result]]()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
