"""Captions from metadata files in the format of datasets, including file names that are not exact paths."""

import collections
import csv
import io
import json
import os
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from hypernet.data.captions import caption_alternatives, caption_lines, read_any_encoding
from hypernet.utils.errors import UserError, counted

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
METADATA_SUFFIXES = (".jsonl", ".csv", ".json")  # the last in kohya's form: {"cat": {"caption": "a cat"}}
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}  # of the cells of a CSV file; the first one found counts

Captions = tuple[str, ...] | UserError  # of an image, or what is wrong with them
Parts = tuple[str, ...]  # of a path


def read_metadata(
    files: list[Path], images: list[Path], column: str, uncaptioned: Collection[Path], has_lines: bool = False
) -> tuple[dict[Path, Captions], list[str]]:
    """Merge the entries of metadata files; the file nearest to an image takes precedence.

    Args:
        column: the column of captions; "" for none.
        uncaptioned: the images that have no caption outside these files.
        has_lines: whether each line of a caption is a separate caption.

    Returns:
        The captions by image, and notes on entries that name no image, or name it other than by its path.

    Raises:
        UserError: if a file cannot be read, or none of its entries names an image although some have no other caption.
    """
    merged: dict[Path, Captions] = {}
    folders: dict[Path, Path] = {}  # of the metadata file that the entry of each image comes from
    useless, notes = [], []
    known = _by_path(images) if files else {}
    for file in sorted(files, key=lambda file: len(file.parts)):  # the nearest comes last
        entries = read_entries(file, column, has_lines)
        exact, guessed = _match_paths((name for name, _ in entries), file.parent, known)
        matched, replacing = exact | guessed, []
        for name, captions in entries:
            if captions is not None and (image := matched.get(name)) is not None:
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
        # the name without its ending is the usual form in kohya's files
        is_json = file.suffix.lower() == ".json"
        if odd := {name: image for name, image in guessed.items() if not (is_json and name == image.stem)}:
            notes.append(_describe_guessed(file, odd))
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


def read_entries(file: Path, column: str, has_lines: bool = False) -> list[tuple[str, Captions | None]]:
    """Return each file_name and its captions.

    The format is that of https://huggingface.co/docs/datasets/image_load, or kohya's in a JSON file. Spreadsheet
    programs of many countries separate the cells of CSV files with semicolons.

    Args:
        column: of the captions; "" for none. An entry of kohya's that has no "text" has a "caption", "tags" or both.
        has_lines: whether each line of a caption is a separate caption.

    Raises:
        UserError: if the file cannot be read.
    """
    text = read_any_encoding(file)
    header = text.partition("\n")[0]
    separator = next((each for each in SEPARATORS if each in header), ",")
    try:
        if file.suffix.lower() == ".json":
            rows = _json_rows(text, has_lines)
        elif file.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=separator))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    is_json = file.suffix.lower() == ".json"
    if is_json and column and rows and not any(column in row for row in rows):
        raise UserError(f"--caption_column {column}: no entry of {file} has it; the first has {', '.join(rows[0])}")
    entries: list[tuple[str, Captions | None]] = []
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix.lower() == ".csv" and None in columns.values()):
            problem = f"it has more or fewer cells than the header; put captions with {SEPARATORS[separator]} in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        found = ", ".join(map(str, columns)) or "no columns"
        name = columns.get("file_name")
        if not isinstance(name, str):
            raise UserError(f"{file}: row {number} has no 'file_name'; it has {found}")
        try:
            if column and column not in columns and not is_json:
                hint = 'name the caption column with --caption_column, "" for none'
                raise ValueError(f"there is no such column; it has {found}; {hint}")
            cell = columns.get(column) if column else ""
            captions = caption_alternatives(cell)
            captions = caption_lines(captions) if has_lines else captions
            entries.append((name, None if is_json and cell is None else captions))
        except ValueError as error:  # matters only if the image has no other caption
            entries.append((name, UserError(f"{file}: row {number}, column {column}: {error}")))
    return entries


def is_json_metadata(file: Path) -> bool:
    """Return whether a JSON file describes images as kohya's scripts do, or has rows like those of metadata.jsonl."""
    try:
        rows = _json_rows(read_any_encoding(file))
    except (ValueError, RecursionError):
        return False
    return any({"caption", "tags", "text", "train_resolution"} & set(row) for row in rows)


def _json_rows(text: str, has_lines: bool = False) -> list[dict]:
    """Return the entries of a JSON file as the rows of metadata.jsonl.

    Its form is that of kohya's finetune scripts: {name or path: {"caption": text, "tags": text, ...}}. As there, the
    tags follow the caption, or each line of it if `has_lines`.

    Raises:
        ValueError: if it has another form.
    """
    content = json.loads(text)
    if isinstance(content, dict) and all(isinstance(value, dict) for value in content.values()):
        content = [{"file_name": name, **value} for name, value in content.items()]
    if not isinstance(content, list) or not all(isinstance(row, dict) and "file_name" in row for row in content):
        raise ValueError('it must have the form {"cat": {"caption": "a cat"}}, with the name or path of each image')
    for row in content:
        if "text" not in row:
            row["text"] = _join_tags(row.get("caption"), row.get("tags"), has_lines)
    return content


def _join_tags(caption: object, tags: object, has_lines: bool) -> object:
    """Return a caption with tags after it; None if there is neither."""
    if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags):
        tags = ", ".join(tags)
    if not caption or not tags:
        return caption or tags or None
    if isinstance(caption, list):
        return [_join_tags(each, tags, has_lines) for each in caption]
    lines = [line for line in str(caption).split("\n") if line.strip()] if has_lines else [caption]
    return "\n".join(f"{line}, {tags}" for line in lines)


def match_names(names: Iterable[str], folder: Path, images: list[Path]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Find the image that each file_name of a metadata file means.

    Returns:
        Two mappings from names to images: names that are an image's path relative to the folder, and names that can
        mean only one of the other images below the folder. For the latter, one path must end with the other, regardless
        of slashes, case and Unicode form, with or without the suffix.
    """
    return _match_paths(names, folder, _by_path(images))


def _by_path(images: Iterable[Path]) -> dict[str, Path]:
    return {os.path.abspath(image): image for image in images}


def _match_paths(names: Iterable[str], folder: Path, known: dict[str, Path]) -> tuple[dict[str, Path], dict[str, Path]]:
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
