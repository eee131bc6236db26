"""Where captions come from: text files beside the images, metadata files, file names, cells of a dataset."""

import csv
import io
import json
import re
from pathlib import Path

from hypernet.utils.errors import UserError

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

Entries = dict[Path, tuple[str, ...] | UserError]  # image -> its captions, or what is wrong with them


def caption_from_name(stem: str, word_regex: str | None = None, join_string: str = " ") -> str:
    """Turn a file name without its extension into a caption: "03-a cat" becomes "a cat".

    As in the WebUI, leading digits and dashes, and spaces after them, are dropped. With `word_regex`, the caption is
    its matches (those of its group, if it has one), joined by `join_string`.
    """
    text = re.sub(r"^[-\d]+\s*", "", stem)
    return join_string.join(re.findall(word_regex, text)) if word_regex else text


def check_word_regex(pattern: str) -> None:
    """Raise ValueError if the pattern does not compile or has more than one group."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern}: it is not a valid regular expression ({error})") from None
    if groups > 1:
        raise ValueError(f"{pattern}: it has {groups} groups; keep one (...) and turn the others into (?:...)")


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file, with or without a byte order mark.

    Raises:
        UserError: if it is not UTF-8 or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from None


def has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def read_captions(path: Path, sidecars: dict[tuple[Path, str], Path], entries: Entries) -> tuple[str, ...] | None:
    """Return the captions from NAME.txt, else from a metadata file, else None."""
    sidecar = sidecars.get((path.parent, path.stem))
    if sidecar:
        return (read_text(sidecar).strip(),)
    entry = entries.get(path)
    if isinstance(entry, UserError):
        raise entry
    return entry


def read_metadata(files: list[Path], images: list[Path], column: str) -> tuple[Entries, list[str]]:
    """Merge the entries of metadata files; the file nearest to an image takes precedence.

    Returns:
        The entries, and a note for each file that names images which do not exist.

    Raises:
        UserError: if a file cannot be read.
    """
    merged: Entries = {}
    known, notes = set(images), []
    for file in sorted(files, key=lambda file: len(file.parts)):  # the nearest comes last
        entries = _read_metadata_file(file, column)
        unknown = [path for path in entries if path not in known]
        if unknown:
            which = f"{len(unknown)} of {len(entries)} entries name no image, such as {unknown[0].name}"
            notes.append(f"{file}: {which}")
        merged.update(entries)
    return merged, notes


def _read_metadata_file(file: Path, column: str) -> Entries:
    """Return the entries of a metadata file, in the format of https://huggingface.co/docs/datasets/image_load."""
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    entries: Entries = {}
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix == ".csv" and None in columns.values()):
            problem = "it has more or fewer cells than the header; put captions with commas in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        found = ", ".join(map(str, columns)) or "no columns"
        if not isinstance(columns.get("file_name"), str):
            raise UserError(f"{file}: row {number} has no 'file_name'; it has {found}")
        image = file.parent / columns["file_name"]
        try:
            if column and column not in columns:
                hint = 'name the caption column with --caption_column, "" for none'
                raise ValueError(f"there is no such column; it has {found}; {hint}")
            entries[image] = caption_alternatives(row[column] if column else "")
        except ValueError as error:  # matters only if the image has no other caption
            entries[image] = UserError(f"{file}: row {number}, column {column}: {error}")
    return entries


def caption_alternatives(cell: object) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts, or nothing.

    Raises:
        ValueError: if it holds anything else.
    """
    texts = []
    for text in cell if isinstance(cell, list) else [cell]:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"it must be text, not {type(text).__name__}")
        if text and has_surrogates(text):
            raise ValueError("it contains half of a character (an unpaired surrogate)")
        texts.append((text or "").strip())
    return tuple(texts) or ("",)
