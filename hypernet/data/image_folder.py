"""Find the images below a folder and their captions, by the rules of the WebUI and of datasets' `imagefolder`."""

import collections
import dataclasses
from collections.abc import Iterable
from pathlib import Path

from hypernet.data.captions import caption_from_name, caption_lines, read_texts
from hypernet.data.folder_files import (
    CAPTION_SUFFIXES,
    TABLE_SUFFIXES,
    TEMPLATE_NAME,
    FolderFiles,
    find_files,
    find_listed,
    image_places,
    image_stem,
    place_of,
)
from hypernet.data.metadata import METADATA_NAMES, Captions, read_metadata
from hypernet.data.prompts import read_templates
from hypernet.utils.errors import UserError, counted


@dataclasses.dataclass
class ImageFolder:
    """The images below a folder, in the order of their paths, and one or several captions for each."""

    images: list[Path]
    captions: list[tuple[str, ...]]
    captioned: list[bool]  # False where the caption comes from the image's file name
    problems: list[str]  # a line for each file or folder that cannot be used
    notes: list[str]  # on likely mistakes
    template_files: list[str]  # for each image the path of the nearest TEMPLATE_NAME, or ""


def read_image_folder(
    root: Path,
    option: str = "--train_data_dir",
    caption_column: str = "text",
    word_regex: str | None = None,
    join_string: str = " ",
    has_lines: bool = False,
) -> ImageFolder:
    """Find the images below `root`, and their captions.

    The caption of an image is the text file of the same name beside it, else its entry in a metadata file, else its
    file name. Files that may hold captions but are not read get a note.

    Args:
        root: a folder, or a file that lists images (see `find_listed`). If that is a metadata file, its captions take
            precedence.
        option: the option that names it, for messages.
        caption_column: column of the metadata files; "" for none.
        word_regex, join_string: how a file name becomes a caption; see `caption_from_name`.
        has_lines: whether each line of a caption is a separate caption.

    Raises:
        UserError: if there is no image, or if a caption file cannot be read.
    """
    if not root.exists():
        raise UserError(f"{option} {root}: there is no such folder")
    files = find_files(root) if root.is_dir() else find_listed(root, option)
    if not files.images:
        reasons = "; ".join(files.problems[:1] + files.notes[:1]) or "PNG, JPEG, WebP, AVIF, BMP, GIF or TIFF"
        raise UserError(f"{option} {root}: it contains no images ({reasons})")
    if caption_column not in ("text", "") and not files.metadata:
        raise UserError(f"--caption_column {caption_column}: {root} has no {' or '.join(METADATA_NAMES)}")
    found, templates = _find_sidecars(files), _find_templates(root, files)
    others = [path for path in files.images if path not in found]
    entries, notes = read_metadata(files.metadata, files.images, caption_column, others, has_lines)
    sidecars = found
    if root in files.metadata:  # its captions take precedence
        sidecars = {path: text for path, text in found.items() if not _is_caption(entries.get(path))}
    texts: dict[Path, tuple[str, ...]] = {path: (text.strip(),) for path, text in read_texts(sidecars.values()).items()}
    if has_lines:
        texts = {path: caption_lines(text) for path, text in texts.items()}
    folder = ImageFolder(files.images, [], [], files.problems, files.notes + notes, templates)
    overridden = [
        path
        for path, entry in entries.items()
        if path in sidecars and _is_caption(entry) and entry != texts[sidecars[path]]
    ]
    if overridden:
        count = counted(len(overridden), "image has", "images have")
        hint = "text files take precedence, unless --train_data_dir names the metadata file instead of its folder"
        example = f"such as {sidecars[min(overridden)]}"
        folder.notes.append(f"{count} both a text file, {example}, and another caption in metadata; {hint}")
    for path in files.images:
        captions = texts[sidecars[path]] if path in sidecars else entries.get(path)
        if isinstance(captions, UserError):
            raise captions
        folder.captioned.append(captions is not None)
        folder.captions.append(captions or (caption_from_name(image_stem(path), word_regex, join_string),))
    folder.notes += _unread_notes(files, found.values(), (path for path in others if path not in entries))
    return folder


def _is_caption(entry: Captions | None) -> bool:
    return isinstance(entry, tuple) and any(entry)


def _find_sidecars(files: FolderFiles) -> dict[Path, Path]:
    """Map each image that has a text file beside it to that file."""
    last_wins = sorted(files.texts, key=lambda path: -CAPTION_SUFFIXES.index(path.suffix.lower()))
    texts = {place_of(path): path for path in last_wins}
    places = {path: next((place for place in image_places(path) if place in texts), None) for path in files.images}
    return {path: texts[place] for path, place in places.items() if place is not None}


def _find_templates(root: Path, files: FolderFiles) -> list[str]:
    """Return for each image the path of the nearest TEMPLATE_NAME in its folder or above, up to `root`; "" if none.

    These files then count as read.

    Raises:
        UserError: if one cannot be read, or has no valid template.
    """
    stem = Path(TEMPLATE_NAME).stem
    texts = [path for path in files.texts if path.name.lower() == TEMPLATE_NAME]
    if not texts:
        return [""] * len(files.images)
    captions = {path.parent for path in [*files.images, *files.misnamed] if path.stem.lower() == stem}
    found = {path.parent: path for path in texts if path.parent not in captions}
    for path in found.values():
        try:
            read_templates(str(path))
        except ValueError as error:
            raise UserError(error) from None
    files.texts = [path for path in files.texts if path not in found.values()]
    nearest: dict[Path, str] = {}
    top = root if root.is_dir() else root.parent
    folders = {path.parent for path in files.images}
    above = {folder for path in folders for folder in (path, *path.parents) if folder.is_relative_to(top)}
    for folder in sorted(above):
        nearest[folder] = str(found[folder]) if folder in found else nearest.get(folder.parent, "")
    return [nearest.get(path.parent, "") for path in files.images]


def _unread_notes(files: FolderFiles, read: Iterable[Path], uncaptioned: Iterable[Path]) -> list[str]:
    """Return a note for each kind of file that may hold captions but is not read.

    Args:
        read: the text files that have been read.
        uncaptioned: images that have no caption besides their names.
    """
    found = set(read)
    texts = [path for path in files.texts if path not in found]
    if not texts and not files.unread:
        return []
    images = {place for path in files.images for place in image_places(path)}
    places = images.union(map(place_of, files.misnamed))
    lacking = {place for path in uncaptioned for place in image_places(path)}
    kinds = collections.defaultdict[tuple[str, str, str], list[Path]](list)  # (one, many, remedy) -> files
    for path in texts:
        suffix = path.suffix.lower()
        if place_of(path) not in places:
            one, many = f"{suffix} file belongs to no image", f"{suffix} files belong to no image"
            kinds[one, many, "a text file must have the name of its image"].append(path)
        elif place_of(path) in images:
            remedy = f"a {CAPTION_SUFFIXES[0]} file of the same name takes precedence"
            kinds[f"{suffix} file is not read", f"{suffix} files are not read", remedy].append(path)
    for path in files.unread if lacking else []:
        suffix, name = path.suffix.lower(), path.name.lower()
        if place_of(path) in lacking:
            remedy = "write the caption of NAME.png as NAME.txt"
        elif suffix not in TABLE_SUFFIXES or place_of(path) in places:
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
