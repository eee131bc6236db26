"""A folder of images: which there are, and their captions, by the WebUI's order and `imagefolder`'s."""

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
OTHER_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".jfif", ".jp2", ".tga"}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass
class ImageFolder:
    """What was found below a folder, images in the order of their paths."""

    images: list[Path]
    metadata: list[Path]
    texts: list[Path]
    unnamed: list[Path]  # images whose names are not UTF-8
    problems: list[str]  # a line for each file or folder that cannot be used
    notes: list[str]  # what the user may have meant otherwise
    captions: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    written: list[bool] = dataclasses.field(default_factory=list)  # whether they are texts, and no file's name


def read_image_folder(config, option: str = "train_data_dir") -> ImageFolder:
    """The images below the folder that this option names, and one or several captions for each.

    Raises:
        UserError: if there is none, or a caption file cannot be read.
    """
    root = Path(getattr(config, option))
    option = option_text(config, option)
    if not root.is_dir():
        raise UserError(f"{option}: {'it is a file' if root.exists() else 'there is no such folder'}")
    folder = _walk(root)
    if not folder.images:
        reasons = "; ".join(folder.problems[:1] + folder.notes[:1])
        hint = f" ({reasons})" if reasons else " (PNG, JPEG, WebP, BMP, GIF or TIFF)"
        raise UserError(f"{option}: there is no image in it{hint}")
    if config.caption_column not in ("text", "") and not folder.metadata:
        raise UserError(f"--caption_column {config.caption_column}: {root} has no {' or '.join(METADATA_NAMES)}")
    described = _read_all_metadata(folder, config.caption_column)
    sidecars = {(path.parent, path.stem): path for path in folder.texts}
    for path in folder.images:
        folder.captions.append(_caption_of(path, sidecars, described, config))
        folder.written.append((path.parent, path.stem) in sidecars or path in described)
    stems = {(path.parent, path.stem) for path in folder.images + folder.unnamed}
    orphans = [path for place, path in sidecars.items() if place not in stems]
    if orphans:
        folder.notes.append(f"{len(orphans)} .txt files belong to no image, such as {orphans[0]}")
    return folder


def option_text(config, option: str) -> str:
    """How messages name it: "--train_data_dir pictures", or "SRC pictures" where a script takes it by its place."""
    return f"{option if option.isupper() else f'--{option}'} {Path(getattr(config, option))}"


def _walk(root) -> ImageFolder:
    """(`imagefolder` would take a sub-folder or a file called "test" for another split.)"""
    found, others, seen = ImageFolder([], [], [], [], [], []), collections.Counter(), set()

    def report(error):
        found.problems.append(f"{ascii(error.filename)[1:-1]}: it cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(root, onerror=report, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to where we have been
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
                found.unnamed.append(Path(path))
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
        if isinstance(described[path], UserError):
            raise described[path]
        return described[path]
    return (caption_from_name(path.stem, config.filename_word_regex, config.filename_join_string),)


# --- Metadata files


def _read_all_metadata(folder, column):
    """{image path: captions} of all metadata files."""
    described, images = {}, set(folder.images)
    for file in sorted(folder.metadata, key=lambda file: len(file.parts)):  # the nearest comes last, and counts
        entries = _read_metadata(file, column)
        unknown = [path for path in entries if path not in images]
        if unknown:
            folder.notes.append(
                f"{file}: {len(unknown)} of {len(entries)} entries name no image, such as {unknown[0].name}"
            )
        described.update(entries)
    return described


def _read_metadata(file, column):
    """{image path: captions, or what is wrong with them} of a metadata file.

    Its layout is that of https://huggingface.co/docs/datasets/image_load.
    """
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    described = {}
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        if None in columns or (file.suffix == ".csv" and None in columns.values()):
            problem = "it has more or fewer cells than there are columns; a caption with commas stands in quotes"
            raise UserError(f"{file}: row {number}: {problem}")
        found = ", ".join(map(str, columns)) or "no columns"
        if not isinstance(columns.get("file_name"), str):
            raise UserError(f"{file}: row {number} has no 'file_name', it has {found}")
        image = file.parent / columns["file_name"]
        try:
            if column and column not in columns:
                hint = 'name the captions with --caption_column, "" for none'
                raise ValueError(f"there is no such column, but {found}; {hint}")
            described[image] = alternatives(row[column] if column else "")
        except ValueError as error:  # to be raised if the image has no other caption
            described[image] = UserError(f"{file}: row {number}, column {column}: {error}")
    return described


def alternatives(caption) -> tuple[str, ...]:
    """A caption, or a list of them, as the captions of which one is drawn each time."""
    texts = caption if isinstance(caption, list) else [caption]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"it holds no text, but {type(text).__name__}")
        if text and _has_surrogates(text):
            raise ValueError("it holds half of a letter (a surrogate)")
    return tuple((text or "").strip() for text in texts) or ("",)
