"""A folder of images: which there are, and their captions, by the WebUI's order and `imagefolder`'s."""

import collections
import csv
import dataclasses
import io
import json
import os
from pathlib import Path

from hypernet.captions import caption_from_name, read_text
from hypernet.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
OTHER_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".jfif", ".jp2", ".tga"}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass
class Folder:
    """What was found below a folder, images in the order of their paths."""

    images: list[Path]
    metadata: list[Path]
    texts: list[Path]
    problems: list[str]  # a line for each file or folder that cannot be used
    notes: list[str]  # what the user may have meant otherwise
    captions: list[tuple[str, ...]] = dataclasses.field(default_factory=list)


def read_folder(config) -> Folder:
    """The images below `config.train_data_dir`, and one or several captions for each.

    Raises:
        UserError: if there is none, or a caption file cannot be read.
    """
    root = Path(config.train_data_dir)
    option = f"--train_data_dir {root}"
    if not root.is_dir():
        raise UserError(f"{option}: {'it is a file' if root.exists() else 'there is no such folder'}")
    folder = _walk(root)
    if not folder.images:
        reasons = "; ".join(folder.problems[:1] + folder.notes[:1])
        hint = f" ({reasons})" if reasons else " (PNG, JPEG, WebP, BMP, GIF or TIFF)"
        raise UserError(f"{option}: there is no image in it{hint}")
    described = _read_all_metadata(folder, config.caption_column)
    sidecars = {(path.parent, path.stem): path for path in folder.texts}
    for path in folder.images:
        folder.captions.append(_caption_of(path, sidecars, described, config))
    stems = {(path.parent, path.stem) for path in folder.images}
    orphans = [path for place, path in sidecars.items() if place not in stems]
    if orphans:
        folder.notes.append(f"{len(orphans)} .txt files belong to no image, such as {orphans[0]}")
    return folder


def _walk(root) -> Folder:
    """(`imagefolder` would take a sub-folder or a file called "test" for another split.)"""
    found, others, seen = Folder([], [], [], [], []), collections.Counter(), set()

    def report(error):
        found.problems.append(f"{ascii(error.filename)[1:-1]}: it cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(root, onerror=report, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [
            name
            for name in sorted(folders)
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) not in seen
        ]
        for name in names:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if name in METADATA_NAMES:
                found.metadata.append(Path(path))
            elif suffix == ".txt":
                found.texts.append(Path(path))
            elif suffix in IMAGE_SUFFIXES and _has_surrogates(path):
                found.problems.append(f"{ascii(path)[1:-1]}: its name is not UTF-8; rename it")
            elif suffix in IMAGE_SUFFIXES:
                found.images.append(Path(path))
            elif suffix in OTHER_SUFFIXES:
                others[suffix] += 1
    for suffix, count in others.items():
        found.notes.append(f"{suffix} files are not read ({count}); save them as PNG or JPEG")
    for paths in (found.images, found.metadata, found.texts):
        paths.sort()
    return found


def _has_surrogates(text):
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _caption_of(path, sidecars, described, config):
    """NAME.txt, else what a metadata file says, else the file's name."""
    sidecar = sidecars.get((path.parent, path.stem))
    if sidecar:
        return (read_text(sidecar).strip(),)
    if path in described:
        return described[path]
    return (caption_from_name(path.stem, config.filename_word_regex, config.filename_join_string),)


# --- Metadata files


def _read_all_metadata(folder, column):
    """{image path: captions} of all metadata files."""
    described, images = {}, set(folder.images)
    for file in folder.metadata:
        entries = _read_metadata(file, column)
        unknown = [path for path in entries if path not in images]
        if unknown:
            folder.notes.append(
                f"{file}: {len(unknown)} of {len(entries)} entries name no image, such as {unknown[0].name}"
            )
        described.update(entries)
    return described


def _read_metadata(file, column):
    """{image path: captions} of a metadata file, as https://huggingface.co/docs/datasets/image_load lays it out."""
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    described = {}
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix == ".csv" and None in columns.values()):
            problem = "it has more or fewer cells than there are columns; a caption with commas stands in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        for needed in ("file_name", column):
            if needed and needed not in columns:
                hint = "; name the captions with --caption_column" if needed == column else ""
                found = ", ".join(map(str, columns)) or "no columns"
                raise UserError(f"{file}: row {number} has no {needed!r}, it has {found}{hint}")
        try:
            described[file.parent / str(row["file_name"])] = alternatives(row[column] if column else "")
        except ValueError as error:
            raise UserError(f"{file}: row {number}, column {column}: {error}") from None
    return described


def alternatives(caption) -> tuple[str, ...]:
    """A caption, or a list of them, as the captions of which one is drawn each time."""
    texts = caption if isinstance(caption, list) else [caption]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"it holds no text, but {type(text).__name__}")
    return tuple((text or "").strip() for text in texts) or ("",)
