"""Find the images below a folder and their captions, by the rules of the WebUI and of datasets' `imagefolder`."""

import collections
import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

from hypernet.data.captions import caption_from_name, has_surrogates, read_texts
from hypernet.data.metadata import METADATA_NAMES, read_metadata
from hypernet.utils.errors import UserError, counted

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNSUPPORTED_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".jfif", ".jp2", ".tga"}
CAPTION_SUFFIXES = (".txt", ".caption")  # the first takes precedence; kohya's scripts write the second

# Files that may hold captions but are not read: of the image with the same name, or of many images
DOCUMENT_SUFFIXES = {".cap", ".tag", ".tags", ".text", ".md", ".yaml", ".yml", ".xml", ".rtf", ".doc", ".docx", ".odt"}
TABLE_SUFFIXES = {".json", ".json1", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xls", ".xlsx", ".ods"}
OWN_NAMES = {"prepare.jsonl"}  # written by examples/prepare.py


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
    unread: list[Path] = dataclasses.field(default_factory=list)  # documents and tables
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
    file name. Files that may hold captions but are not read get a note.

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
    sidecars = _find_sidecars(files)
    texts = read_texts(sidecars.values())
    others = [path for path in files.images if path not in sidecars]
    entries, notes = read_metadata(files.metadata, files.images, caption_column, others)
    folder = ImageFolder(files.images, [], [], files.problems, files.notes + notes)
    overridden = [
        path
        for path, entry in entries.items()
        if path in sidecars and isinstance(entry, tuple) and any(entry) and entry != (texts[sidecars[path]].strip(),)
    ]
    if overridden:
        count = counted(len(overridden), "image has", "images have")
        example = f"such as {sidecars[min(overridden)]}"
        folder.notes.append(
            f"{count} both a text file, {example}, and another caption in metadata; text files take precedence"
        )
    for path in files.images:
        captions = (texts[sidecars[path]].strip(),) if path in sidecars else entries.get(path)
        if isinstance(captions, UserError):
            raise captions
        folder.captioned.append(captions is not None)
        folder.captions.append(captions or (caption_from_name(path.stem, word_regex, join_string),))
    folder.notes += _unread_notes(files, sidecars.values(), (path for path in others if path not in entries))
    return folder


def _find_sidecars(files: _Files) -> dict[Path, Path]:
    """Map each image that has a text file beside it to that file."""
    last_wins = sorted(files.texts, key=lambda path: -CAPTION_SUFFIXES.index(path.suffix.lower()))
    texts = {_place(path): path for path in last_wins}
    return {path: texts[_place(path)] for path in files.images if _place(path) in texts}


def _unread_notes(files: _Files, read: Iterable[Path], uncaptioned: Iterable[Path]) -> list[str]:
    """Return a note for each kind of file that may hold captions but is not read.

    Args:
        read: the text files that have been read.
        uncaptioned: images that have no caption besides their names.
    """
    found, images = set(read), {_place(path) for path in files.images}
    places, lacking = images.union(map(_place, files.misnamed)), set(map(_place, uncaptioned))
    kinds = collections.defaultdict[tuple[str, str, str], list[Path]](list)  # (one, many, remedy) -> files
    for path in files.texts:
        suffix = path.suffix.lower()
        if _place(path) not in places:
            one, many = f"{suffix} file belongs to no image", f"{suffix} files belong to no image"
            kinds[one, many, "a text file must have the name of its image"].append(path)
        elif _place(path) in images and path not in found:
            remedy = f"a {CAPTION_SUFFIXES[0]} file of the same name takes precedence"
            kinds[f"{suffix} file is not read", f"{suffix} files are not read", remedy].append(path)
    for path in files.unread if lacking else []:
        suffix, name = path.suffix.lower(), path.name.lower()
        if _place(path) in lacking:
            remedy = "write the caption of NAME.png as NAME.txt"
        elif suffix not in TABLE_SUFFIXES or _place(path) in places:
            continue
        elif name in METADATA_NAMES:
            remedy = f"rename to {name}"
        else:
            remedy = f"write the captions of several images as {' or '.join(METADATA_NAMES)}"
        kinds[f"{suffix} file is not read", f"{suffix} files are not read", remedy].append(path)
    return [
        f"{counted(len(paths), one, many)}, such as {paths[0]}; {remedy}"
        for (one, many, remedy), paths in kinds.items()
    ]


def _place(path: Path) -> tuple[Path, str]:
    """Return the folder and stem, which an image and its text file share."""
    return path.parent, path.stem


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
            if name.startswith(".") or name in OWN_NAMES:
                continue
            if name in METADATA_NAMES:
                found.metadata.append(Path(path))
            elif suffix in CAPTION_SUFFIXES:
                found.texts.append(Path(path))
            elif suffix in DOCUMENT_SUFFIXES | TABLE_SUFFIXES:
                found.unread.append(Path(path))
            elif suffix in IMAGE_SUFFIXES and has_surrogates(path):
                found.misnamed.append(Path(path))
                found.problems.append(f"{ascii(path)[1:-1]}: its name is not UTF-8; rename it")
            elif suffix in IMAGE_SUFFIXES:
                found.images.append(Path(path))
            elif suffix in UNSUPPORTED_SUFFIXES:
                unsupported[suffix] += 1
    for suffix, count in unsupported.items():
        found.notes.append(f"{suffix} files are not supported ({count}); save them as PNG or JPEG")
    for paths in (found.images, found.metadata, found.texts, found.unread):
        paths.sort()
    return found
