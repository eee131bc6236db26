"""An axis of an X/Y plot: its values from the command line, and what its rows or columns are called."""

import dataclasses
import glob
import re
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from hypernet.utils.errors import UserError

KINDS = ("checkpoint", "strength", "seed", "guidance", "prompt", "steps")
_NUMBERS = {"strength": float, "guidance": float, "seed": int, "steps": int}
_NUMBER = r"([+-]?\d+(?:\.\d*)?)"
_RANGE = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d+)\s*\])?")
MOST = 1000  # values of an axis; more is a slip of the finger


@dataclasses.dataclass(frozen=True)
class Axis:
    """What changes along it, the values in order, and a label for each."""

    kind: str
    values: tuple
    labels: tuple[str, ...]


def parse_axis(option: str, words: list[str]) -> Axis:
    """The axis that an option such as `--x strength "0-1 [5]"` asks for; a value that is named twice counts once.

    Raises:
        UserError: for an unknown kind, no values, or values that are none.
    """
    kind, *words = words
    if kind not in KINDS:
        raise UserError(f"{option} {kind}: an axis is one of {', '.join(KINDS)}")
    if not words:
        raise UserError(f"{option} {kind}: its values are missing")
    if kind in _NUMBERS:
        values = parse_numbers(f"{option} {kind}", words, whole=_NUMBERS[kind] is int)
        labels = [f"{value} steps" if kind == "steps" else f"{kind} {value}".removesuffix(".0") for value in values]
    elif kind == "checkpoint":
        values = find_checkpoints(f"{option} {kind}", words)
        labels = label_checkpoints(values)
    else:
        values = labels = list(dict.fromkeys(words))
    return Axis(kind, tuple(values), tuple(labels))


def parse_numbers(option: str, words: list[str], whole: bool) -> list:
    """Numbers and the WebUI's ranges, apart or separated by commas; all ends included.

    "1-5" is 1, 2, 3, 4, 5; "1-10 (+3)" is 1, 4, 7, 10; "0-1 [5]" are five evenly from 0 to 1 (whole ones cut down).
    """
    numbers = []
    for word in (part.strip() for part in ",".join(words).split(",")):
        match = _RANGE.fullmatch(word)
        try:
            numbers += _expand(*match.groups()) if match else [Decimal(word)]
        except (ArithmeticError, ValueError):
            match = None
            numbers.append(Decimal("nan"))
        if not numbers[-1].is_finite() or whole and not match and numbers[-1] % 1:
            problem = f"it is neither a {'whole ' * whole}number nor a range"
            raise UserError(f'{option} {word}: {problem}; ranges are "1-5", "1-10 (+3)" or "0-1 [5]", in quotes')
    return list(dict.fromkeys(int(number) if whole else float(number) for number in numbers))


def _expand(start, end, step, count) -> list[Decimal]:
    """Decimals, or 0.1 + 0.2 would not be 0.3. Raises: ValueError if there is nothing in it, or too much."""
    start, end = Decimal(start), Decimal(end)
    if count is not None:
        length, between, parts = int(count), end - start, max(1, int(count) - 1)
    else:
        between, parts = Decimal(step or 1), 1
        length = int((end - start) / between) + 1 if (end - start) * between >= 0 else 0
    if not 1 <= length <= MOST:
        raise ValueError
    return [start + i * between / parts for i in range(length)]


def find_checkpoints(option: str, words: list[str]) -> list[str | None]:
    """Paths as they are named, patterns expanded, None for the word "none".

    Neighbours in one folder come in natural order, 2 before 10, as no shell has them.

    Raises:
        UserError: if a pattern fits nothing.
    """
    paths = []
    for word in words:
        if word == "none":
            paths.append(None)
        elif Path(word).exists() or not glob.has_magic(word):
            paths.append(word)
        else:
            found = sorted(glob.glob(word, recursive=True), key=natural_order)
            if not found:
                raise UserError(f"{option} {word}: nothing fits this pattern")
            paths += found
    paths = list(dict.fromkeys(paths))
    runs = groupby(paths, key=lambda path: path and Path(path).parent)
    return [path for folder, run in runs for path in (sorted(run, key=natural_order) if folder else run)]


def natural_order(path: str) -> list:
    """A sort key that compares numbers within the text as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def label_checkpoints(paths: list[str | None]) -> list[str]:
    """ "step 500" of step-000500, else the name; with the run's name before it where two would be called the same."""
    names = ["none" if path is None else _short_name(Path(path)) for path in paths]
    return [name if names.count(name) == 1 else f"{_run_name(Path(path))} {name}" for path, name in zip(paths, names)]


def _run_name(path: Path) -> str:
    above = path.resolve().parent
    return above.parent.name if above.name == "checkpoints" else above.name


def _short_name(path: Path) -> str:
    name = path.stem if path.suffix in (".pt", ".safetensors") else path.resolve().name if path.exists() else path.name
    match = re.fullmatch(r"step-0*(\d+)", name)
    return f"step {match[1]}" if match else name
