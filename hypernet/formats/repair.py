"""Rewrite an old or odd WebUI `.pt` so that every program reads it alike."""

import shutil
from pathlib import Path

import torch

from hypernet.formats.compatibility import serialization_problem
from hypernet.formats.webui import (
    FIELDS,
    IGNORED,
    OLD_LAYER_NAMES,
    build_webui,
    find_skip_connection,
    read_webui,
    save_webui,
)
from hypernet.formats.webui_optimizer import optim_path, rehash_optim, short_hash
from hypernet.utils.errors import UserError


def repair(path: Path) -> list[str]:
    """Rewrite the file in place if anything needs repair, and keep the old one as `.bak`.

    An optimizer file that belongs to it gets the new file's hash.

    Returns:
        A phrase for each repair, and for each other file written; empty if there was nothing to repair.

    Raises:
        NotAHypernetwork: if the file is not a hypernetwork.
        UserError: if there is a `.bak` already, or the folder cannot be written to.
    """
    data = read_webui(path)
    repairs = find_repairs(path, data)
    if not repairs:
        return []
    backup = path.with_name(f"{path.name}.bak")
    if backup.exists():
        raise UserError(f"{backup}: it already exists; move it away, to make room for a backup of {path.name}")
    hypernetwork, old_hash = build_webui(path, data), short_hash(path)
    half = hypernetwork.stored_dtype is torch.float16
    try:
        shutil.copy2(path, backup)
        save_webui(hypernetwork, path, torch.float16 if half else torch.float32)
        if rehash_optim(path, old_hash):
            repairs.append(f"{optim_path(path).name} now has the new file's hash")
    except OSError as error:
        raise UserError(f"{path}: it cannot be written ({error.strerror or error})") from None
    return [*repairs, f"the old file is kept as {backup.name}"]


def find_repairs(path: Path, data: dict) -> list[str]:
    """Return a phrase for each problem that rewriting the file would repair; `data` is what `read_webui` returned."""
    widths = [key for key in data if type(key) is int]
    names = {name.partition(".")[0] for width in widths for part in data[width] for name in part}
    fields = ["layer_structure", "activate_output", "is_layer_norm", "activation_func", "name"]
    fields += ["skip_connection"] if find_skip_connection(data) else []
    missing = [field for field in fields if field not in data]
    known = {*FIELDS, *IGNORED}
    problems = {
        "layer names of October 2022": names & OLD_LAYER_NAMES.keys(),
        "activation None, which means linear": ("activation_func", None) in data.items(),
        "a name inside that differs from the file name": data.get("name") not in (None, path.stem),
        f"missing fields, for which programs assume different values ({', '.join(missing)})": missing,
        "a serialization that some versions of the WebUI refuse": serialization_problem(path),
        "fields that no program knows": [key for key in data if type(key) is not int and key not in known],
    }
    return [phrase for phrase, found in problems.items() if found]
