"""Captions from metadata files: datasets' format, and file names that were written from another place."""

import collections
import csv
import io
import json
import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from hypernet.data.captions import caption_alternatives, read_text
from hypernet.utils.errors import UserError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

Captions = tuple[str, ...] | UserError  # of an image, or what is wrong with them
Parts = tuple[str, ...]  # of a path


def read_metadata(
    files: list[Path], images: list[Path], column: str, uncaptioned: Collection[Path]
) -> tuple[dict[Path, Captions], list[str]]:
    """Merge the entries of metadata files; the file nearest to an image takes precedence.

    Args:
        column: the column of captions; "" for none.
        uncaptioned: the images that have no caption but in these files.

    Returns:
        The captions by image, and notes on entries that name no image or are not written as its path.

    Raises:
        UserError: if a file cannot be read, or if no entry of one names an image although some have no other caption.
    """
    merged: dict[Path, Captions] = {}
    useless, notes = [], []
    for file in sorted(files, key=lambda file: len(file.parts)):  # the nearest comes last
        entries = _read_entries(file, column)
        exact, guessed = match_names(entries, file.parent, images)
        merged |= {image: entries[name] for name, image in {**exact, **guessed}.items()}
        unknown = [name for name in entries if name not in exact and name not in guessed]
        which = f"{file}: {len(unknown)} of {len(entries)} entries name no image" if entries else f"{file}: it is empty"
        which += f', such as "{unknown[0]}"' if unknown else ""
        if entries and len(unknown) == len(entries):
            useless.append((file.parent, which))
        if unknown or not entries:
            notes.append(which)
        for name, image in list(guessed.items())[:1]:
            example = f'such as "{name}" for {image.relative_to(file.parent)}'
            notes.append(f"{file}: {len(guessed)} entries name an image in another way than its path, {example}")
    for folder, which in useless:
        if any(image not in merged and image.is_relative_to(folder) for image in uncaptioned):
            raise UserError(f"{which}; file_name must be the path of an image from {folder}, such as sub/cat.png")
    return merged, notes


def _read_entries(file: Path, column: str) -> dict[str, Captions]:
    """Return the captions by file_name, in the format of https://huggingface.co/docs/datasets/image_load."""
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    entries: dict[str, Captions] = {}
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix == ".csv" and None in columns.values()):
            problem = "it has more or fewer cells than the header; put captions with commas in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        found = ", ".join(map(str, columns)) or "no columns"
        name = columns.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{file}: row {number} has no 'file_name'; it has {found}")
        try:
            if column and column not in columns:
                hint = 'name the caption column with --caption_column, "" for none'
                raise ValueError(f"there is no such column; it has {found}; {hint}")
            entries[name] = caption_alternatives(row[column] if column else "")
        except ValueError as error:  # matters only if the image has no other caption
            entries[name] = UserError(f"{file}: row {number}, column {column}: {error}")
    return entries


def match_names(names: Iterable[str], folder: Path, images: list[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the image that each file_name of a metadata file means.

    Returns:
        Those that are an image's path relative to the folder, and those that can mean only one of the other images
        below the folder: one path ends like the other, whatever the slashes, the case and the Unicode form, with or
        without the suffix.
    """
    known = {os.path.abspath(image): image for image in images}
    start = os.path.join(os.path.abspath(folder), "")
    paths = {name: os.path.normpath(os.path.join(start, name)) for name in names}
    exact = {name: known[path] for name, path in paths.items() if path in known}
    if len(exact) == len(paths):
        return exact, {}
    whole, ends = collections.defaultdict[Parts, list[Path]](list), collections.defaultdict[Parts, list[Path]](list)
    named = {paths[name] for name in exact}
    for path in known:
        if path not in named and path.startswith(start):
            relative = path[len(start) :]
            for parts in {_plain_parts(relative), _plain_parts(os.path.splitext(relative)[0])}:
                whole[parts].append(known[path])
                for first in range(len(parts)):
                    ends[parts[first:]].append(known[path])
    guessed: dict[str, Path] = {}
    for name in (name for name in paths if name not in exact):
        parts = _plain_parts(name)
        own_ends = (parts[first:] for first in range(1, len(parts)))
        found = ends.get(parts) or next((whole[end] for end in own_ends if end in whole), [])
        if len(found) == 1:
            guessed[name] = found[0]
    times = collections.Counter(guessed.values())
    return exact, {name: image for name, image in guessed.items() if times[image] == 1}


def _plain_parts(path: str) -> Parts:
    """Return the parts of a path in a form that is equal for all spellings of it."""
    plain = unicodedata.normalize("NFC", path.strip().replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", ".", ".."))
