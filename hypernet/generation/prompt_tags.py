"""Write tags in prompts, as in the WebUI (`<hypernet:name:0.8>`), and find the hypernetworks their names refer to."""

import difflib
import filecmp
import functools
import json
import os
import re
from pathlib import Path

from hypernet.formats.load_save import WEIGHTS_NAME
from hypernet.formats.trained_folder import is_best_state, read_trained_config
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import check_file

_NOT_IN_TAGS = re.compile(r"[<>:/\x00-\x1f\x7f\ud800-\udfff]|^\s*$")  # replaced with "_" in names


def write_tag(path: str | Path, strength: float) -> str:
    """Return the tag for a hypernetwork; it works in the WebUI once the `.pt` is installed there."""
    return f"<hypernet:{tag_name(path)}:{strength:g}>"


def tag_name(path: str | Path) -> str:
    """Return the name of a hypernetwork in prompts.

    A file is called by its stem, a trained folder by the name in its config, a Hub repository by its own name. A
    checkpoint is NAME-STEP, as in the WebUI; a run's best state is NAME-best. Characters that a tag cannot contain
    become "_".
    """
    path = Path(path)
    config = read_trained_config(path)
    if config is None:
        name = path.stem if path.suffix.lower() in (".pt", ".hns", ".safetensors") else path.name
        return _in_tag(f"{name}-best" if is_best_state(path.parent) else name)
    name = config.get("name", path.name)
    if is_best_state(path):
        return _in_tag(f"{name}-best")
    return _in_tag(f"{name}-{config.get('step', 0)}" if path.parent.name == "checkpoints" else name)


def _in_tag(name: object) -> str:
    """Replace characters that end a name in a tag, or cannot be written to a PNG, with "_"."""
    return _NOT_IN_TAGS.sub("_", str(name))


def find_hypernetwork(name: str, folder: str | Path) -> Path:
    """Return the file or trained folder below `folder` that is called `name`.

    `name` may be preceded by parent folders, as in "run/name", to tell apart several of the same name.

    Raises:
        UserError: if there is none (with the nearest names), or if several match and their contents differ.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--hypernetwork_dir {folder}: there is no such folder to look for {name} in")
    known, wanted = _scan(folder), tuple(name.split("/"))
    found = [path for path, names in known if any(parts[-len(wanted) :] == wanted for parts in names)]
    found = [path for path in found if path.parent not in found]  # a trained folder's .pt may have the folder's name
    found = [path for path in found if path.suffix.lower() != ".safetensors" or path.with_suffix(".pt") not in found]
    if not found:
        near = difflib.get_close_matches(name, sorted({parts[-1] for _, names in known for parts in names}))
        hint = f"did you mean {' or '.join(near)}?" if near else "use --hypernetwork_dir to search another folder"
        raise UserError(f"<hypernet:{name}>: there is no such hypernetwork in {folder}; {hint}")
    if not all(_same_contents(found[0], path) for path in found[1:]):
        problem = f"it could be {' or '.join(map(str, found[:3]))}"
        raise UserError(f"<hypernet:{name}>: {problem}; write more of the path, as in {_longer_tag(known, found[0])}")
    return found[0]


Known = list[tuple[Path, list[tuple[str, ...]]]]  # hypernetworks and the names that refer to them, split at slashes


def _longer_tag(known: Known, path: Path) -> str:
    """Return the shortest tag that matches this hypernetwork only."""
    names = next(names for other, names in known if other == path)
    tails = sorted({parts[-length:] for parts in names for length in range(1, len(parts) + 1)}, key=len)
    for tail in tails:
        if all(other == path or all(parts[-len(tail) :] != tail for parts in others) for other, others in known):
            return f"<hypernet:{'/'.join(tail)}>"
    return f"--hypernetwork {path}"


@functools.lru_cache
def _scan(folder: Path) -> Known:
    """List the hypernetworks below `folder`, sorted, each with all names that refer to it."""
    known: Known = []
    for root, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = Path(root)
        above = tuple(map(_in_tag, (folder.resolve().name, *place.relative_to(folder).parts)))
        trained = read_trained_config(place) is not None
        if trained:
            names = [above, (*above[:-1], tag_name(place))]
            if place.parent.name == "checkpoints":
                names.append((*above[:-2], tag_name(place)))  # run/NAME-STEP
            known.append((place, names))
        for file in sorted(map(Path, files)):
            weights = file.suffix.lower() == ".safetensors" and file.name != WEIGHTS_NAME
            if file.suffix.lower() in (".pt", ".hns") or weights and (trained or _is_standalone(place / file)):
                best = [(*above[:-1], tag_name(place / file))] if is_best_state(place) else []
                known.append((place / file, best or [(*above, _in_tag(file.stem))]))
    return known


def _is_standalone(file: Path) -> bool:
    """Return whether a .safetensors has a hypernetwork's config in its header (8 bytes of length, then JSON)."""
    try:
        check_file(file)
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, 1 << 24)))
        return "hypernetwork" in header.get("__metadata__", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _same_contents(a: Path, b: Path) -> bool:
    """Return whether two files, or the weights of two trained folders, are equal."""
    a, b = (path / WEIGHTS_NAME if path.is_dir() else path for path in (a, b))
    return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)
