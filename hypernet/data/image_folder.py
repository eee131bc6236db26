"""Find the images below a folder and their captions, by the rules of the WebUI and of datasets' `imagefolder`."""

import collections
import dataclasses
import os
from pathlib import Path

from hypernet.data.captions import METADATA_NAMES, caption_from_name, has_surrogates, read_captions, read_metadata
from hypernet.utils.errors import UserError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
UNSUPPORTED_SUFFIXES = {".heic", ".heif", ".avif", ".jxl", ".psd", ".svg", ".jfif", ".jp2", ".tga"}


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
    entries, notes = read_metadata(files.metadata, files.images, caption_column)
    sidecars = {(path.parent, path.stem): path for path in files.texts}
    folder = ImageFolder(files.images, [], [], files.problems, files.notes + notes)
    for path in files.images:
        captions = read_captions(path, sidecars, entries)
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
            elif suffix in IMAGE_SUFFIXES and has_surrogates(path):
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
