"""Read `.hns` files, in which the Hypernetwork-MonkeyPatch-Extension combines several hypernetworks by name.

The text is a Python literal (patches/hypernetworks.py of the extension; pull request 4334 of the WebUI describes it):
    "a"                          the hypernetwork a
    ("a", 0.5) or {"a": 0.5}     a at strength 0.5
    ["a", ("b", 0.4)]            a, then b
    {"a": 0.7, "b": 0.3}         the weighted mean of both; the weights are scaled to sum to 1
    {"a", "b"}                   the mean of both
In a list, any of these may take the place of a name; in a dict or set, a tuple may, or a string that contains any of
these. A list, set or tuple with one entry means the same as that entry.
"""

import ast
import dataclasses
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypernet.formats.load_save import WEIGHTS_NAME, find_weights, load
from hypernet.formats.safe_pickle import NotAHypernetwork
from hypernet.modeling.composition import Attachable, Composition
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.utils.errors import one_line
from hypernet.utils.reading import read_text

ENDING = ".hns"
MAX_BYTES = 1 << 16
MAX_DEPTH = 20
EXAMPLE = "as in [('one', 0.5), 'two'] or {'one': 0.7, 'two': 0.3}"


@dataclasses.dataclass(frozen=True)
class Node:
    """One hypernetwork by name, or several: in sequence, or as a weighted mean if there are weights."""

    name: str = ""
    strength: float = 1.0  # of one hypernetwork
    parts: tuple["Node", ...] = ()
    weights: tuple[float, ...] | None = None

    def names(self) -> Iterator[str]:
        """Yield the names of all hypernetworks."""
        yield from [self.name] if not self.parts else [name for part in self.parts for name in part.names()]


def is_stack_file(path: str | Path) -> bool:
    """Return whether the path has the ending of a `.hns` file."""
    return Path(path).suffix.lower() == ENDING


def load_stack(path: str | Path) -> Attachable:
    """Load anything that `hypernet.load` opens, or a `.hns` file with the hypernetworks that it names.

    Returns:
        A hypernetwork or a composition of several, to attach.

    Raises:
        NotAHypernetwork: if the file or one of its hypernetworks cannot be read; the message is one line.
    """
    if not is_stack_file(path):
        return load(path)
    path = find_weights(path)
    node = read_stack(path)
    hypernetworks = {name: load(find_member(path, name)) for name in dict.fromkeys(node.names())}
    part, strength = _build(path.stem, node, hypernetworks)
    return part if strength == 1 else Composition(path.stem, [(part, strength)])


def _build(name: str, node: Node, hypernetworks: dict[str, Hypernetwork]) -> tuple[Attachable, float]:
    """Return what the node stands for, and its strength."""
    if not node.parts:
        return hypernetworks[node.name], node.strength
    return Composition(name, [_build(name, part, hypernetworks) for part in node.parts], node.weights), 1.0


def member_files(path: str | Path) -> list[Path]:
    """Return the files of the hypernetworks that a `.hns` file names, each once.

    Raises:
        NotAHypernetwork: if it cannot be read, or there is no such hypernetwork.
    """
    path = find_weights(path)
    return list(dict.fromkeys(find_member(path, name) for name in read_stack(path).names()))


def find_member(path: Path, name: str) -> Path:
    """Return the file or trained folder called `name`, from the folder of the `.hns` file or else the nearest below it.

    The extension's names may end in a short hash, as in "style(1a2b3c4d)". A file's name may have its ending.

    Raises:
        NotAHypernetwork: if there is none.
    """
    wanted = [name, *([name.rpartition("(")[0].rstrip()] if name.endswith(")") else [])]
    for files in (path.parent.iterdir(), path.parent.rglob("*")):  # what is below may be many files
        nearest = sorted(files, key=lambda file: (len(file.parts), file.suffix != ".pt", file))
        for word, file in itertools.product(wanted, nearest):
            if word in (file.stem, file.name) and file.suffix.lower() in (".pt", ".safetensors"):
                return file
            if word == file.name and (file / WEIGHTS_NAME).is_file():
                return file
    problem = f'it names "{one_line(name, 60)}", but neither its folder nor one below has such a hypernetwork'
    hint = f"; write several {EXAMPLE}" if re.search(r"[,\n]", name) else ""
    raise NotAHypernetwork(f"{path}: {problem}{hint}")


def read_stack(path: str | Path) -> Node:
    """Return what a `.hns` file describes.

    Raises:
        NotAHypernetwork: if it cannot be read or understood; the message is one line.
    """
    try:
        text = read_text(path, MAX_BYTES).strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise NotAHypernetwork(f"{path}: it cannot be read ({reason})") from None
    return _parse(path, _evaluate(path, text) if text.startswith(("'", '"')) else text)


def _evaluate(path: str | Path, text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise NotAHypernetwork(f"{path}: it is not a list of hypernetworks, {EXAMPLE}") from None


def _parse(path: str | Path, item: Any, depth: int = 0) -> Node:
    if depth > MAX_DEPTH:
        raise NotAHypernetwork(f"{path}: it is nested too deeply")
    if isinstance(item, (list, tuple, set)) and len(item) == 1:
        return _parse(path, next(iter(item)), depth + 1)
    if isinstance(item, str) and item.startswith(("[", "(", "{")):
        return _parse(path, _evaluate(path, item), depth + 1)
    if isinstance(item, str) and item:
        return Node(item)
    if isinstance(item, dict) and len(item) == 1:
        [item] = item.items()
        if item[1] == 1:
            return _parse(path, item[0], depth + 1)
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
        if item[0] and not item[0].startswith(("[", "(", "{")):  # only one hypernetwork has a strength
            return Node(item[0], _number(path, item[1]))
    if isinstance(item, (dict, set)) and item:
        weighted = item if isinstance(item, dict) else dict.fromkeys(sorted(item, key=repr), 1)
        weights = tuple(_number(path, weight) for weight in weighted.values())
        if sum(weights) <= 0:
            raise NotAHypernetwork(f"{path}: the weights {weights} must sum to more than 0")
        return Node(parts=tuple(_parse(path, key, depth + 1) for key in weighted), weights=weights)
    if isinstance(item, list) and item:
        return Node(parts=tuple(_parse(path, each, depth + 1) for each in item))
    raise NotAHypernetwork(f"{path}: {one_line(repr(item), 60)} is not a hypernetwork; write names, {EXAMPLE}")


def _number(path: str | Path, value: Any) -> float:
    if type(value) in (int, float) and abs(value) <= 1e6:
        return float(value)
    raise NotAHypernetwork(f"{path}: {one_line(repr(value), 60)} is not a strength or weight; write numbers, {EXAMPLE}")
