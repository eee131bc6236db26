"""Write an old or odd WebUI `.pt` anew, so that every program that can read it does."""

import shutil
from pathlib import Path

import torch

from hypernet.errors import UserError
from hypernet.readers import webui_problems
from hypernet.webui import FIELDS, OLD_LAYER_NAMES, build_webui, read_webui, save_webui
from hypernet.webui_optim import find_optimizer, optim_path, save_optim


def mend(path: Path) -> list[str]:
    """Write the file anew if there is something to mend, keeping the old one as `.bak`; what was mended.

    Its optimizer's file, if there is one, is written again with the new file's hash.

    Raises:
        NotAHypernetwork: if it is none.
        UserError: if there is a `.bak` already, or the folder cannot be written to.
    """
    data = read_webui(path)
    mended = _mended(path, data)
    if not mended:
        return []
    backup = path.with_name(f"{path.name}.bak")
    if backup.exists():
        raise UserError(f"{backup}: it exists already; move it away, so that {path.name} can be kept there")
    hypernetwork = build_webui(path, data)
    state = find_optimizer(path, hypernetwork)
    half = hypernetwork.stored_dtype is torch.float16
    try:
        shutil.copy2(path, backup)
        save_webui(hypernetwork, path, torch.float16 if half else torch.float32)
        if state is not None:
            save_optim(state, path)
            mended.append(f"{optim_path(path).name} has its hash")
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror or error})") from None
    return [*mended, f"the old file is {backup.name}"]


def _mended(path, data) -> list[str]:
    """What a file written anew has better, one phrase each."""
    widths = [key for key in data if type(key) is int]
    names = {name.partition(".")[0] for width in widths for part in data[width] for name in part}
    missing = [field for field in ("layer_structure", "activate_output", "is_layer_norm") if data.get(field) is None]
    problems = {
        "layer names of the first weeks": names & OLD_LAYER_NAMES.keys(),
        "activation None is now linear": data.get("activation_func") is None,
        f"the name in it is now {path.stem}": data.get("name") != path.stem,
        "the WebUI's defaults are written out": missing,
        "serialisation that every WebUI takes": any("refuses" in problem for problem in webui_problems(path, data)),
        "fields that no program knows are gone": [key for key in data if type(key) is not int and key not in FIELDS],
    }
    return [phrase for phrase, found in problems.items() if found]
