"""Captions from metadata files in the format of datasets, including file names that are not exact paths."""

import collections
import csv
import io
import json
import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from hypernet.data.captions import caption_alternatives, read_any_encoding
from hypernet.utils.errors import UserError, counted

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of the cells of a CSV file; the first one found counts

Captions = tuple[str, ...] | UserError  # of an image, or what is wrong with them
Parts = tuple[str, ...]  # of a path


def read_metadata(
    files: list[Path], images: list[Path], column: str, uncaptioned: Collection[Path]
) -> tuple[dict[Path, Captions], list[str]]:
    """Merge the entries of metadata files; the file nearest to an image takes precedence.

    Args:
        column: the column of captions; "" for none.
        uncaptioned: the images that have no caption outside these files.

    Returns:
        The captions by image, and notes on entries that name no image, or name it other than by its path.

    Raises:
        UserError: if a file cannot be read, or none of its entries names an image although some have no other caption.
    """
    merged: dict[Path, Captions] = {}
    folders: dict[Path, Path] = {}  # of the metadata file that the entry of each image comes from
    useless, notes = [], []
    for file in sorted(files, key=lambda file: len(file.parts)):  # the nearest comes last
        entries = _read_entries(file, column)
        exact, guessed = match_names((name for name, _ in entries), file.parent, images)
        matched, replacing = exact | guessed, []
        for name, captions in entries:
            if (image := matched.get(name)) is not None:
                if folders.get(image) == file.parent and merged[image] != captions:
                    replacing.append(name)
                merged[image], folders[image] = captions, file.parent
        unknown = [name for name, _ in entries if name not in matched]
        if unknown or not entries:
            notes.append(_describe_unknown(file, unknown, len(entries)))
        if entries and len(unknown) == len(entries):
            useless.append((file.parent, notes[-1]))
        if replacing:
            count = counted(len(replacing), "entry replaces", "entries replace")
            notes.append(f'{file}: {count} an earlier caption of the same image, such as that of "{replacing[0]}"')
        if guessed:
            notes.append(_describe_guessed(file, guessed))
    for folder, which in useless:
        below = [image for image in images if image.is_relative_to(folder)]
        if any(image not in merged and image.is_relative_to(folder) for image in uncaptioned):
            raise UserError(f"{which}; file_name must be the path of an image from {folder}, such as sub/cat.png")
        if uncaptioned and not merged and not below:
            raise UserError(f"{which}, and {folder} contains no images; move the file to the folder of its images")
    return merged, notes


def _describe_unknown(file: Path, unknown: list[str], total: int) -> str:
    """Return a note on entries that name no image, or on a file without entries."""
    if not total:
        return f"{file}: it is empty"
    verb = "names" if len(unknown) == 1 else "name"
    return f'{file}: {len(unknown)} of {counted(total, "entry", "entries")} {verb} no image, such as "{unknown[0]}"'


def _describe_guessed(file: Path, guessed: dict[str, Path]) -> str:
    """Return a note on entries that name an image other than by its path."""
    name, image = next(iter(guessed.items()))
    path = image.relative_to(file.parent).as_posix()
    example = f'such as "{name}" for {path}'
    if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path):
        example += "; they look the same, but differ in Unicode form (NFC and NFD)"
    count = counted(len(guessed), "entry names", "entries name")
    return f"{file}: {count} an image other than by its path, {example}"


def _read_entries(file: Path, column: str) -> list[tuple[str, Captions]]:
    """Return each file_name and its captions, in the format of https://huggingface.co/docs/datasets/image_load.

    Spreadsheet programs of many countries separate the cells of CSV files with semicolons.
    """
    text = read_any_encoding(file)
    header = text.partition("\n")[0]
    separator = next((each for each in SEPARATORS if each in header), ",")
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    entries: list[tuple[str, Captions]] = []
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix == ".csv" and None in columns.values()):
            problem = f"it has more or fewer cells than the header; put captions with {SEPARATORS[separator]} in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        found = ", ".join(map(str, columns)) or "no columns"
        name = columns.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{file}: row {number} has no 'file_name'; it has {found}")
        try:
            if column and column not in columns:
                hint = 'name the caption column with --caption_column, "" for none'
                raise ValueError(f"there is no such column; it has {found}; {hint}")
            entries.append((name, caption_alternatives(row[column] if column else "")))
        except ValueError as error:  # matters only if the image has no other caption
            entries.append((name, UserError(f"{file}: row {number}, column {column}: {error}")))
    return entries


def match_names(names: Iterable[str], folder: Path, images: list[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the image that each file_name of a metadata file means.

    Returns:
        Two mappings from names to images: names that are an image's path relative to the folder, and names that can
        mean only one of the other images below the folder. For the latter, one path must end with the other, regardless
        of slashes, case and Unicode form, with or without the suffix.
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
    """Return the parts of a path, normalized so that all its spellings are equal."""
    plain = unicodedata.normalize("NFC", path.strip().replace("\\", "/")).casefold()
    return tuple(part for part in plain.split("/") if part not in ("", ".", ".."))
