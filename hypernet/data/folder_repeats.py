"""How often a folder's images count per epoch: FOLDER:N on the command line, kohya's folder names such as 10_cat.

Imports no torch.
"""

import collections
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hypernet.utils.errors import UserError, counted

MOST_REPEATS = 9999  # of FOLDER:N
MOST_IN_NAME = 999  # more is a year or a date, as in 2023_holiday
SHOWN = 4  # folders in a note

# The value of --train_data_dir; a single folder, or file that lists images, is a string, as in earlier versions
Folders = str | list[str] | None


def plain_folders(value: Folders) -> Folders:
    """Return the value of --train_data_dir without empty strings: None, a single folder as a string, or a list."""
    folders = [folder for folder in ([value] if isinstance(value, str) else value or []) if folder]
    return folders if len(folders) > 1 else next(iter(folders), None)


def split_folders(value: Folders) -> list[tuple[str, int | None]]:
    """Return each folder of --train_data_dir with the number after its colon, as `split_repeats` does."""
    return [split_repeats(folder) for folder in ([value] if isinstance(value, str) else value or [])]


def folder_paths(value: Folders) -> list[Path]:
    """Return the folders of --train_data_dir without their repeats."""
    return [Path(path) for path, _ in split_folders(value)]


def split_repeats(text: str) -> tuple[str, int | None]:
    r"""Split "my_images:2" into folder and repeats; None if there is no number.

    If the whole text is an existing folder, its colon is part of the name; C:\images is a path with a drive letter.

    Raises:
        UserError: if an existing folder is followed by anything but a number from 1 to MOST_REPEATS.
    """
    path, _, number = text.rpartition(":")
    exists = bool(path) and os.path.exists(path)
    if not path or os.path.exists(text) or (re.fullmatch("[A-Za-z]", path) and not exists):
        return text, None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", number):
        if not 1 <= int(number) <= MOST_REPEATS:
            hint = f"repeats are at most {MOST_REPEATS}" if int(number) else "leave the folder out"
            raise UserError(f"--train_data_dir {text}: its images would count {int(number)} times; {hint}")
        return path, int(number)
    if exists and not re.search(r"[/\\]", number):
        problem = "only a whole number may follow the colon"
        raise UserError(f"--train_data_dir {text}: {problem}; write {path}:2, or {path} without a colon")
    return text, None


def check_folders(value: Folders) -> None:
    """Check several folders of --train_data_dir against each other.

    Raises:
        UserError: if one does not exist (it may be half of a path with spaces), is named twice or lies in another.
    """
    folders = folder_paths(value)
    for i, path in enumerate(folders):
        if not path.exists() and (hint := _missing_hint(folders, i)):
            raise UserError(f"--train_data_dir {path}: there is no such folder; {hint}")
    places = [path.resolve() for path in folders]
    for path, place in zip(folders, places):
        if places.count(place) > 1:
            raise UserError(f"--train_data_dir {path}: it is named twice; write {path}:2 to repeat its images")
        for other, above in zip(folders, places):
            if place != above and place.is_relative_to(above) and place.is_dir():
                problem = f"it lies in {other}, which already includes it; name the subfolders of {other} one by one"
                raise UserError(f"--train_data_dir {path}: {problem}")


def _missing_hint(folders: Sequence[Path], i: int) -> str:
    """Return what was probably meant by a folder that does not exist; "" if that is unclear."""
    path = str(folders[i])
    for separator in (";", ",", None):
        parts = [part.strip() for part in path.split(separator)]
        if len(parts) > 1 and all(part and os.path.exists(split_repeats(part)[0]) for part in parts):
            return f"write several folders as separate words, {' '.join(parts)}, or as a list in --config"
    if i and path.isdecimal() and folders[i - 1].exists():
        return f"to repeat the images of {folders[i - 1]}, write {folders[i - 1]}:{path}"
    if len(folders) == 1:
        return ""
    after = folders[i + 1 : i + 2]
    halves = folders[i : i + 2] if i == 0 or not all(other.exists() for other in after) else folders[i - 1 : i + 1]
    return f"if {' and '.join(repr(str(half)) for half in halves)} are one path, put it in quotes"


def absolute_folders(value: Folders) -> Folders:
    """Make the paths of all existing folders in --train_data_dir absolute."""
    return plain_folders(
        [
            f"{Path(path).resolve() if os.path.exists(path) else path}{'' if repeats is None else f':{repeats}'}"
            for path, repeats in split_folders(value)
        ]
    )


def repeats_in_name(name: str) -> int | None:
    """Return the number of a folder's name in kohya's form, such as 10 for "10_cat"; None for any other name."""
    match = re.fullmatch(r"([1-9][0-9]*)_.+", name, re.DOTALL)
    return int(match[1]) if match and len(match[1]) < 9 and int(match[1]) <= MOST_IN_NAME else None


def folder_words(folder: Path) -> str:
    """Return what [folder] stands for: the folder's name, without the repeats in it ("cat" for "10_cat")."""
    name = Path(os.path.abspath(folder)).name
    return name.partition("_")[2] if repeats_in_name(name) else name


def count_repeats(root: Path, given: int | None, images: Sequence[Path]) -> tuple[list[int], list[str]]:
    """Return how often each image below `root` counts per epoch, and notes on numbers in folder names.

    A number after the folder's colon applies to all images. Without one, the number in the name of the image's
    subfolder in `root` counts, else that in the name of `root`; else each image counts once.

    Args:
        root: a folder, or a file that lists images, for which only the number after the colon counts.
        given: the number after the colon, or None.
    """
    if root.is_file():
        return [given or 1] * len(images), []
    option, above = f"--train_data_dir {root}", Path(os.path.abspath(root)).name
    parents = [image.parent for image in images]
    folders = collections.Counter(parents)
    inner = {folder: folder.relative_to(root).parts for folder in folders}
    first = {folder: inner[folder][0] if inner[folder] else above for folder in folders}
    names = collections.Counter[str]()
    for folder, count in folders.items():
        names[first[folder]] += count
    numbers = {name: repeats_in_name(name) or repeats_in_name(above) or 1 for name in names}
    repeated = [name for name in names if numbers[name] > 1]
    if given is not None:
        ignored = next((name for name in repeated if name != above and repeats_in_name(name)), None)
        if ignored is None or given == 1:
            return [given] * len(images), []
        rule = f"each image counts {_times(given)}; numbers in the names of subfolders, such as {ignored}, are ignored"
        return [given] * len(images), [f"{option}:{given}: {rule}"]
    notes: list[str] = []
    plain, _, number = str(root).rpartition(":")
    if number.isdecimal() and plain and os.path.exists(plain):
        notes.append(
            f"{option}: this is a folder of that name, not {plain} repeated; to repeat that, write {plain}/:{number}"
        )
    if repeated:
        parts = [f"{name} ({counted(names[name], 'image')}, {_times(numbers[name])} each)" for name in repeated[:SHOWN]]
        more = f" and {len(repeated) - SHOWN} more" if len(repeated) > SHOWN else ""
        rule = "the number that a folder's name starts with is how often its images count per epoch, as in kohya"
        notes.append(f"{option}: {rule}: {', '.join(parts)}{more}; {root}:1 counts every image once")
    if unread := [name for name in names if re.match("[0-9]+_.", name) and not repeats_in_name(name)]:
        times = _times(numbers[unread[0]])
        rule = f"its images count {times}: only 1 to {MOST_IN_NAME}, without leading zeros, are read as repeats"
        notes.append(f"{option}: {unread[0]}: {rule}; to repeat them, name the folder itself as FOLDER:N")
    if deep := next(filter(None, (_numbered_deeper(root, folder) for folder in folders)), None):
        rule = f"its number does not count as repeats, since the folder is not directly in {root}"
        notes.append(f"{option}: {deep.relative_to(root)}: {rule}; if it should, name {deep.parent} instead")
    if count := sum(folders[folder] for folder in folders if "reg" in inner[folder]):  # kohya's name for them
        rule = f"{counted(count, 'image')} in a folder named reg: if these are kohya's regularization images"
        notes.append(f"{option}: {rule}, move them elsewhere; here, they are trained on like all others")
    return [numbers[first[folder]] for folder in parents], notes


def _numbered_deeper(root: Path, folder: Path) -> Path | None:
    """Return `folder`, or one above it, whose name has repeats that do not count, since it is not directly in `root`."""
    inner = folder.relative_to(root)
    deeper = (each for each in (inner, *inner.parents) if each.parent.name)
    return next((root / each for each in deeper if (repeats_in_name(each.name) or 1) > 1), None)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
