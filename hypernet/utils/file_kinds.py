"""Tell regular files from pipes and devices, and recognize files that are not hypernetworks by the names in them."""

import errno
import os
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


def kind_of(names: Iterable[str]) -> str | None:
    """Return the kind of file that contains these names, with its article, such as "a LoRA"; None if unknown.

    Args:
        names: names of tensors, fields and classes, or a file's first bytes decoded as Latin-1.
    """
    joined = "\n".join(names)
    return next((kind for kind, markers in _KINDS if any(marker in joined for marker in markers)), None)


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
    kinds = {stat.S_IFREG: None, stat.S_IFDIR: FOLDER, stat.S_IFIFO: "it is a named pipe"}
    return (kinds | {stat.S_IFSOCK: "it is a socket"}).get(stat.S_IFMT(mode), "it is a device")


def check_file(path: str | Path) -> None:
    """Raise OSError, whose `strerror` says what is there instead, if the path is not a regular file."""
    if problem := file_problem(path):
        raise OSError(errno.ENOENT if problem == NO_FILE else errno.EINVAL, problem, str(path))
