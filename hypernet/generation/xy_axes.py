"""The axes of an X/Y plot: parse their values from the command line and label them."""

import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from decimal import Decimal
from itertools import groupby
from pathlib import Path
from typing import Any

from hypernet.utils.errors import UserError
from hypernet.utils.numbers import plain_signs

KINDS = ("checkpoint", "strength", "seed", "guidance", "prompt", "steps")
MAX_VALUES = 1000  # per range; more are likely a typo
_NUMBERS: dict[str, type] = {"strength": float, "guidance": float, "seed": int, "steps": int}
_NUMBER = r"([+-]?\d+(?:\.\d*)?)"
_RANGE = re.compile(rf"{_NUMBER}\s*-\s*{_NUMBER}\s*(?:\(\s*{_NUMBER}\s*\)|\[\s*(\d+)\s*\])?")
_DECIMAL_COMMA = re.compile(r"\s*[-+]?0,(0\d+|[3-9]|[1-9]\d+)\s*")  # as values, 0 and 3 or more: hardly meant


@dataclasses.dataclass(frozen=True)
class Axis:
    """What changes along an axis, its values in order, and a label for each."""

    kind: str
    values: tuple[Any, ...]
    labels: tuple[str, ...]


def parse_axis(option: str, words: list[str]) -> Axis:
    """Parse the words of an option such as `--x strength "0-1 [5]"`; repeated values count once.

    Raises:
        UserError: if the kind is unknown, or the values are missing or malformed.
    """
    kind, *words = words
    values: Sequence[Any]
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


def parse_numbers(option: str, words: list[str], whole: bool) -> list[float]:
    """Parse numbers and ranges in the WebUI's notation, as separate words or separated by commas.

    Ends are included: "1-5" is 1, 2, 3, 4, 5; "1-10 (+3)" is 1, 4, 7, 10; "0-1 [5]" is 0, 0.25, 0.5, 0.75, 1. With
    `whole`, the last form rounds toward zero.

    Raises:
        UserError: for anything else, and for 0,5 or 0,05, which can only mean 0.5 or 0.05; it names the word.
    """
    numbers: list[Decimal] = []
    for word in filter(_DECIMAL_COMMA.fullmatch, words if not whole else []):
        meant = f'{word.strip().replace(",", ".")}, or "{word.strip().replace(",", ", ")}" for two values'
        raise UserError(f"{option} {word.strip()}: a comma separates values; write {meant}")
    for word in (plain_signs(part).strip() for part in ",".join(words).split(",")):
        match = _RANGE.fullmatch(word)
        try:
            numbers += _expand(*match.groups()) if match else [Decimal(word)]
        except (ArithmeticError, ValueError):
            match = None
            numbers.append(Decimal("nan"))
        if not numbers[-1].is_finite() or whole and not match and numbers[-1] % 1:
            problem = f"it is neither a {'whole ' * whole}number nor a range"
            if not whole and any(re.search(r"\d,\d", each) for each in words):
                problem += " (a comma separates values; write decimals as 0.5)"
            raise UserError(f'{option} {word}: {problem}; ranges are "1-5", "1-10 (+3)" or "0-1 [5]", in quotes')
    return list(dict.fromkeys(int(number) if whole else float(number) for number in numbers))


def _expand(start: str, end: str, step: str | None, count: str | None) -> list[Decimal]:
    """Expand a range, in decimal arithmetic, where 0.1 + 0.2 is 0.3.

    Raises:
        ValueError: if it is empty or has more than MAX_VALUES values.
    """
    first, last = Decimal(start), Decimal(end)
    if count is not None:
        length, numerator, denominator = int(count), last - first, max(1, int(count) - 1)
    else:
        numerator, denominator = Decimal(step or 1), 1
        length = int((last - first) / numerator) + 1 if (last - first) * numerator >= 0 else 0
    if not 1 <= length <= MAX_VALUES:
        raise ValueError
    return [first + i * numerator / denominator for i in range(length)]


def find_checkpoints(option: str, words: list[str]) -> list[str | None]:
    """Return the paths, with patterns expanded and None for the word "none".

    Consecutive paths in one folder are sorted naturally (step-2 before step-10), as shells do not sort them that way.

    Raises:
        UserError: if nothing matches a pattern.
    """
    paths: list[str | None] = []
    for word in words:
        if word == "none":
            paths.append(None)
        elif Path(word).exists() or not glob.has_magic(word):
            paths.append(word)
        else:
            found = _expand_pattern(word)
            if not found:
                raise UserError(f"{option} {word}: nothing matches this pattern")
            paths += sorted(found, key=natural_order)
    paths = list(dict.fromkeys(paths))
    ordered: list[str | None] = []
    for _, siblings in groupby(paths, key=lambda path: path and Path(path).parent):
        ordered += sorted(siblings, key=natural_order)
    return ordered


def _expand_pattern(pattern: str) -> list[str]:
    """Return the paths that match. An existing folder at the start of the pattern is taken literally.

    If nothing matches, square brackets are taken literally, too.
    """
    parts = Path(pattern).parts
    existing = next(count for count in range(len(parts) - 1, -1, -1) if Path(*parts[:count]).exists())
    folder, rest = list(map(glob.escape, parts[:existing])), list(parts[existing:])
    if pattern.endswith(("/", os.sep)):
        rest.append("")  # matches folders only
    patterns = [os.path.join(*folder, *rest), os.path.join(*folder, *(part.replace("[", "[[]") for part in rest))]
    found = (glob.glob(each, recursive=True) for each in patterns)
    return next(filter(None, found), [])


def natural_order(path: str | None) -> list[tuple[int, str]]:
    """Return a sort key that compares numbers within text as numbers."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def label_checkpoints(paths: Sequence[str | None]) -> list[str]:
    """Return "step 500" for step-000500, else the name. The run's name precedes labels that would be the same."""
    names = ["none" if path is None else _short_name(Path(path)) for path in paths]
    labels = [
        name if path is None or names.count(name) == 1 else f"{_run_name(Path(path))} {name}"
        for path, name in zip(paths, names)
    ]
    return [label.encode(errors="replace").decode() for label in labels]  # file names may not be valid Unicode


def _run_name(path: Path) -> str:
    above = path.resolve().parent
    return above.parent.name if above.name == "checkpoints" else above.name


def _short_name(path: Path) -> str:
    name = path.stem if path.suffix in (".pt", ".safetensors") else path.resolve().name if path.exists() else path.name
    match = re.fullmatch(r"step-0*(\d+)", name)
    return f"step {match[1]}" if match else name
