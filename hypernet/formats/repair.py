"""Write an old or odd WebUI `.pt` anew, so that every program that can read it does."""

import shutil
from pathlib import Path

import torch

from hypernet.formats.compatibility import webui_problems
from hypernet.formats.webui import FIELDS, OLD_LAYER_NAMES, build_webui, read_webui, save_webui
from hypernet.formats.webui_optimizer import optim_path, rehash_optim, short_hash
from hypernet.utils.errors import UserError


def repair(path: Path) -> list[str]:
    """Write the file anew if there is something to mend, keeping the old one as `.bak`; what was mended.

    If its optimizer's file has its hash, it gets the new file's.

    Raises:
        NotAHypernetwork: if it is none.
        UserError: if there is a `.bak` already, or the folder cannot be written to.
    """
    data = read_webui(path)
    mended = find_repairs(path, data)
    if not mended:
        return []
    backup = path.with_name(f"{path.name}.bak")
    if backup.exists():
        raise UserError(f"{backup}: it exists already; move it away, so that {path.name} can be kept there")
    hypernetwork, old_hash = build_webui(path, data), short_hash(path)
    half = hypernetwork.stored_dtype is torch.float16
    try:
        shutil.copy2(path, backup)
        save_webui(hypernetwork, path, torch.float16 if half else torch.float32)
        if rehash_optim(path, old_hash):
            mended.append(f"{optim_path(path).name} has the new file's hash")
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror or error})") from None
    return [*mended, f"the old file is {backup.name}"]


def find_repairs(path, data) -> list[str]:
    """What a file written anew has better than this one, of which `read_webui` has read `data`; one phrase each."""
    widths = [key for key in data if type(key) is int]
    names = {name.partition(".")[0] for width in widths for part in data[width] for name in part}
    fields = ("layer_structure", "activate_output", "is_layer_norm", "activation_func", "name")
    missing = [field for field in fields if data.get(field) is None and (field, None) not in data.items()]
    problems = {
        "its layers have the names of October 2022": names & OLD_LAYER_NAMES.keys(),
        "its activation is None (linear is meant)": ("activation_func", None) in data.items(),
        "the name in it is not the file's": data.get("name") not in (None, path.stem),
        f"it leaves to each program what is meant by no {', '.join(missing)}": missing,
        "it is serialised in a way that some WebUI refuses": any("refuses" in p for p in webui_problems(path, data)),
        "it has fields that no program knows": [key for key in data if type(key) is not int and key not in FIELDS],
    }
    return [phrase for phrase, found in problems.items() if found]
