"""Find the images below a folder and their captions, by the rules of the WebUI and of datasets' `imagefolder`."""

import collections
import csv
import dataclasses
import io
import json
import os
from pathlib import Path

from hypernet.data.captions import caption_from_name, read_text
from hypernet.utils.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNSUPPORTED_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".jfif", ".jp2", ".tga"}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

Entries = dict[Path, tuple[str, ...] | UserError]  # image -> its captions, or what is wrong with them


@dataclasses.dataclass
class ImageFolder:
    """The images below a folder, in the order of their paths, and one or several captions for each."""

    images: list[Path]
    captions: list[tuple[str, ...]]
    captioned: list[bool]  # False where the caption comes from the image's file name
    problems: list[str]  # a line for each file or folder that cannot be used
    notes: list[str]  # on likely mistakes


@dataclasses.dataclass
class _Files:
    """The files below a folder, by kind."""

    images: list[Path] = dataclasses.field(default_factory=list)
    metadata: list[Path] = dataclasses.field(default_factory=list)
    texts: list[Path] = dataclasses.field(default_factory=list)
    misnamed: list[Path] = dataclasses.field(default_factory=list)  # images whose names are not UTF-8
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def read_image_folder(
    root: Path,
    option: str = "--train_data_dir",
    caption_column: str = "text",
    word_regex: str | None = None,
    join_string: str = " ",
) -> ImageFolder:
    """Find the images below `root`, and their captions.

    The caption of an image is the text file of the same name beside it, else its entry in a metadata file, else its
    file name.

    Args:
        option: the option that names the folder, for messages.
        caption_column: column of the metadata files; "" for none.
        word_regex, join_string: how a file name becomes a caption; see `caption_from_name`.

    Raises:
        UserError: if there is no image, or if a caption file cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{option} {root}: {'it is a file' if root.exists() else 'there is no such folder'}")
    files = _find_files(root)
    if not files.images:
        reasons = "; ".join(files.problems[:1] + files.notes[:1]) or "PNG, JPEG, WebP, BMP, GIF or TIFF"
        raise UserError(f"{option} {root}: it contains no images ({reasons})")
    if caption_column not in ("text", "") and not files.metadata:
        raise UserError(f"--caption_column {caption_column}: {root} has no {' or '.join(METADATA_NAMES)}")
    entries = _read_all_metadata(files, caption_column)
    sidecars = {(path.parent, path.stem): path for path in files.texts}
    folder = ImageFolder(files.images, [], [], files.problems, files.notes)
    for path in files.images:
        captions = _read_captions(path, sidecars, entries)
        folder.captioned.append(captions is not None)
        folder.captions.append(captions or (caption_from_name(path.stem, word_regex, join_string),))
    stems = {(path.parent, path.stem) for path in files.images + files.misnamed}
    orphans = [path for place, path in sidecars.items() if place not in stems]
    if orphans:
        folder.notes.append(f"{len(orphans)} .txt files belong to no image, such as {orphans[0]}")
    return folder


def _find_files(root: Path) -> _Files:
    """Walk the folder. (`imagefolder` would take a subfolder or file called "test" for another split.)"""
    found, seen = _Files(), set()
    unsupported: collections.Counter[str] = collections.Counter()

    def report(error: OSError) -> None:
        found.problems.append(f"{ascii(error.filename)[1:-1]}: it cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(root, onerror=report, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to a folder already visited
            folders[:] = []
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: os.path.islink(os.path.join(parent, name)))  # links last  # noqa: B023
        for name in names:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if name in METADATA_NAMES:
                found.metadata.append(Path(path))
            elif suffix == ".txt":
                found.texts.append(Path(path))
            elif suffix in IMAGE_SUFFIXES and _has_surrogates(path):
                found.misnamed.append(Path(path))
                found.problems.append(f"{ascii(path)[1:-1]}: its name is not UTF-8; rename it")
            elif suffix in IMAGE_SUFFIXES:
                found.images.append(Path(path))
            elif suffix in UNSUPPORTED_SUFFIXES:
                unsupported[suffix] += 1
    for suffix, count in unsupported.items():
        found.notes.append(f"{suffix} files are not supported ({count}); save them as PNG or JPEG")
    for paths in (found.images, found.metadata, found.texts):
        paths.sort()
    return found


def _has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _read_captions(path: Path, sidecars: dict[tuple[Path, str], Path], entries: Entries) -> tuple[str, ...] | None:
    """Return the captions from NAME.txt, else from a metadata file, else None."""
    sidecar = sidecars.get((path.parent, path.stem))
    if sidecar:
        return (read_text(sidecar).strip(),)
    entry = entries.get(path)
    if isinstance(entry, UserError):
        raise entry
    return entry


# --- Metadata files


def _read_all_metadata(files: _Files, column: str) -> Entries:
    """Merge the entries of all metadata files; the file nearest to an image takes precedence."""
    merged: Entries = {}
    images = set(files.images)
    for file in sorted(files.metadata, key=lambda file: len(file.parts)):  # the nearest comes last
        entries = _read_metadata(file, column)
        unknown = [path for path in entries if path not in images]
        if unknown:
            which = f"{len(unknown)} of {len(entries)} entries name no image, such as {unknown[0].name}"
            files.notes.append(f"{file}: {which}")
        merged.update(entries)
    return merged


def _read_metadata(file: Path, column: str) -> Entries:
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
        if text and _has_surrogates(text):
            raise ValueError("it contains half of a character (an unpaired surrogate)")
        texts.append((text or "").strip())
    return tuple(texts) or ("",)
