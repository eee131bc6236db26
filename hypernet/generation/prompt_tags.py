"""`<hypernet:name:0.8>` in a prompt, as the WebUI has it, and the files that such names mean."""

import difflib
import filecmp
import functools
import json
import math
import os
import re
from pathlib import Path

from hypernet.formats.load_save import WEIGHTS_NAME
from hypernet.formats.trained_folder import _is_best, trained_config
from hypernet.utils.errors import UserError

LORA_TAG = re.compile(r"\s*<lora:[^>]*>")  # written into pictures, never read: LoRAs go under the model, by --lora
TAG = re.compile(r"<(\w+):([^>]+)>")  # the WebUI's extra networks; any other < is text


def split_prompt(prompt: str) -> tuple[str, list[tuple[str, float]]]:
    """The prompt without its tags, and (name, strength) of each in the order written.

    As in the WebUI only the tag itself is taken out, and a strength that is not written is 1.

    Raises:
        UserError: for a tag of another kind, one without a name, or a strength that is no number.
    """
    tags, text = [_read_tag(match) for match in TAG.finditer(prompt)], TAG.sub("", prompt)
    broken = re.search(r"<\s*hypernet\s*:.*", text)
    if broken:
        raise UserError(f"{broken[0][:60]}: write <hypernet:name:strength>, such as <hypernet:my_style:0.8>")
    return text, tags


def _read_tag(match) -> tuple[str, float]:
    kind, (name, *values) = match[1], match[2].split(":")
    if kind == "lora":
        raise UserError(f"{match[0]}: a LoRA goes under the whole picture; name its file with --lora PATH:SCALE")
    if kind != "hypernet":
        raise UserError(f"{match[0]}: only <hypernet:name:strength> is known here, nothing of the kind {kind}")
    try:
        strength = float(values[0]) if values else 1.0
    except ValueError:
        strength = math.nan
    if not name.strip() or len(values) > 1 or not math.isfinite(strength):
        raise UserError(f"{match[0]}: write <hypernet:name:strength>, such as <hypernet:my_style:0.8>")
    return name, strength


def write_tag(path, strength: float) -> str:
    """The tag that draws with this hypernetwork, in the WebUI once its `.pt` is there."""
    return f"<hypernet:{tag_name(path)}:{strength:g}>"


def tag_name(path) -> str:
    """What prompts call it: the stem of a file, the name that a trained folder gives it, NAME-STEP of a checkpoint.

    (NAME-STEP is how the WebUI calls its own checkpoints.) A run's best state is NAME-best. What lies on the Hub has the
    name of its repository.
    """
    path = Path(path)
    config = trained_config(path)
    if config is None:
        name = path.stem if path.suffix.lower() in (".pt", ".safetensors") else path.name
        return f"{name}-best" if _is_best(path.parent) else name
    name = config.get("name", path.name)
    if _is_best(path):
        return f"{name}-best"
    return f"{name}-{config.get('step', 0)}" if path.parent.name == "checkpoints" else name


def find_hypernetwork(name: str, folder) -> Path:
    """The one file or trained folder below `folder` that is called `name`; `run/name` tells between equal names.

    Raises:
        UserError: if there is none, naming the nearest, or if there are several different ones.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--hypernetwork_dir {folder}: there is no such folder to look for {name} in")
    known, wanted = _scan(folder), tuple(name.split("/"))
    found = [path for path, names in known if any(parts[-len(wanted) :] == wanted for parts in names)]
    found = [path for path in found if path.parent not in found]  # a trained folder, and its .pt of the same name
    found = [path for path in found if path.suffix.lower() != ".safetensors" or path.with_suffix(".pt") not in found]
    if not found:
        near = difflib.get_close_matches(name, sorted({parts[-1] for _, names in known for parts in names}))
        hint = f"did you mean {' or '.join(near)}?" if near else "--hypernetwork_dir names another place"
        raise UserError(f"<hypernet:{name}>: there is no such hypernetwork in {folder}; {hint}")
    if not all(_equal(found[0], path) for path in found[1:]):
        problem = f"it may be {' or '.join(map(str, found[:3]))}"
        raise UserError(f"<hypernet:{name}>: {problem}; write more of the path, such as {_longer_tag(known, found[0])}")
    return found[0]


def _longer_tag(known, path) -> str:
    """The shortest tag that means this one only."""
    names = next(names for place, names in known if place == path)
    tails = sorted({parts[-length:] for parts in names for length in range(1, len(parts) + 1)}, key=len)
    for tail in tails:
        if all(place == path or all(parts[-len(tail) :] != tail for parts in others) for place, others in known):
            return f"<hypernet:{'/'.join(tail)}>"
    return f"--hypernetwork {path}"


@functools.lru_cache
def _scan(folder: Path) -> list[tuple[Path, list[tuple[str, ...]]]]:
    """(path, the paths that it may be called by, in parts) of each hypernetwork below `folder`, sorted."""
    known = []
    for place, subfolders, files in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        place = Path(place)
        above = (folder.resolve().name, *place.relative_to(folder).parts)
        trained = trained_config(place) is not None
        if trained:
            names = [above, (*above[:-1], tag_name(place))]
            if place.parent.name == "checkpoints":
                names.append((*above[:-2], tag_name(place)))  # run/NAME-STEP
            known.append((place, names))
        for file in sorted(map(Path, files)):
            weights = file.suffix.lower() == ".safetensors" and file.name != WEIGHTS_NAME
            if file.suffix.lower() == ".pt" or weights and (trained or _stands_alone(place / file)):
                best = [(*above[:-1], tag_name(place / file))] if _is_best(place) else []
                known.append((place / file, best or [(*above, file.stem)]))
    return known


def _stands_alone(file: Path) -> bool:
    """Whether the header of a .safetensors (its length in eight bytes, then JSON) says that it is a hypernetwork."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, 1 << 24)))
        return "hypernetwork" in header.get("__metadata__", {})
    except (OSError, ValueError, AttributeError, RecursionError):
        return False


def _equal(a: Path, b: Path) -> bool:
    """Whether two files, or trained folders, hold the same."""
    a, b = (path / WEIGHTS_NAME if path.is_dir() else path for path in (a, b))
    return a.is_file() and b.is_file() and filecmp.cmp(a, b, shallow=False)
