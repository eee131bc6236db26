"""Tell regular files from pipes and devices, and recognize files by their first bytes or the names in them."""

import errno
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

NO_FILE, FOLDER = "there is no such file", "it is a folder"  # possible results of `file_problem`

# (kind, markers): the first kind with a marker in any of the names wins
_KINDS = [
    ("a WebUI optimizer file (.pt.optim); name the .pt beside it", ("optimizer_state_dict",)),
    (
        "a LoRA",  # before embeddings: some LoRAs include the embeddings they were trained with
        ("lora_down", "lora_up", "lora_A", "lora_B", "lora.up", "lora.down", "hada_w1", "lokr_w1", "dora_scale"),
    ),
    ("a textual inversion embedding", ("string_to_param", "emb_params", "clip_l", "clip_g")),
    ("a ControlNet", ("control_model.", "controlnet_cond_embedding", "zero_convs.")),
    ("a full Stable Diffusion model", ("model.diffusion_model.", "cond_stage_model.", "first_stage_model.")),
    ("a Stable Diffusion UNet", ("time_embedding.linear_1", "time_embed.0.")),
    ("a VAE", ("encoder.conv_in", "decoder.conv_in", "quant_conv")),
    ("a text encoder", ("text_model.", "token_embedding")),
    ("the optimizer state of a checkpoint; name the checkpoint's folder", ("param_groups",)),
    ("an image", ("\x89PNG", "\xff\xd8\xff", "RIFF")),
    ("an archive", ("7z\xbc\xaf", "Rar!", "\x1f\x8b")),
    ("a web page", ("<!doctype html", "<!DOCTYPE html", "<html")),
    ("a Git LFS pointer: the file itself has not been downloaded", ("version https://git-",)),
]
# (kind, pattern of the first bytes)
_IMAGES = [
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("GIF", rb"GIF8[79]a"),
    ("WebP", rb"RIFF....WEBP"),
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0"),  # the size of its header is one of a few
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    ("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG 2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    ("Photoshop", rb"8BPS"),
]
_NO_IMAGES = [
    ("a video", rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI "),  # other images with "ftyp" are found before
    ("a PDF", rb"%PDF"),
    ("an archive", rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x1f\x8b"),
    ("an SVG drawing", rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg"),
    ("a web page", rb"(?i:\s*<(!doctype html|html))"),
    ("a Git LFS pointer; the file itself has not been downloaded", rb"version https://git-lfs"),
]
HEAD = 256  # bytes that `image_kind` and `other_kind` need


def kind_of(names: Iterable[str]) -> str | None:
    """Return the kind of file that contains these names, with its article, such as "a LoRA"; None if unknown.

    Args:
        names: names of tensors, fields and classes, or a file's first bytes decoded as Latin-1.
    """
    joined = "\n".join(names)
    return next((kind for kind, markers in _KINDS if any(marker in joined for marker in markers)), None)


def image_kind(head: bytes) -> str | None:
    """Return the kind of image that begins with these bytes, such as "PNG", "AVIF" or "HEIC"; None if it is not an image.

    Sources: the formats' specifications; for AVIF and HEIC, whose files begin with their brands, ISO/IEC 23008-12.
    """
    if head[4:8] == b"ftyp":
        length = min(int.from_bytes(head[:4], "big"), HEAD)
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, length, 4))}
        if brands & {b"avif", b"avis"}:
            return "AVIF"
        if brands & {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}:
            return "HEIC"
    return next((kind for kind, pattern in _IMAGES if re.match(pattern, head, re.DOTALL)), None)


def other_kind(head: bytes) -> str | None:
    """Return what else begins with these bytes, such as "a web page"; None if unknown."""
    return next((kind for kind, pattern in _NO_IMAGES if re.match(pattern, head, re.DOTALL)), None)


def file_problem(path: str | Path) -> str | None:
    """Return why the path cannot be read as a file, such as "it is a named pipe"; None for a regular file.

    Nothing is opened: opening a pipe waits until another program writes to it, and a device may never end.
    """
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return NO_FILE
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except ValueError:  # a NUL in the path
        return "no file can have this name"
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFDIR: FOLDER, stat.S_IFIFO: "it is a named pipe", stat.S_IFSOCK: "it is a socket"}
    return kinds.get(stat.S_IFMT(mode), "it is a device")


def check_file(path: str | Path) -> None:
    """Raise OSError, whose `strerror` says what is there instead, if the path is not a regular file."""
    if problem := file_problem(path):
        raise OSError(errno.ENOENT if problem == NO_FILE else errno.EINVAL, problem, str(path))
