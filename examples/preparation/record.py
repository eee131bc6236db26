"""prepare.jsonl, the record of what prepare.py made in a folder, and the names of new files.

The first line holds the options. One line follows for each image that is planned and one for each that is done. Lines
are appended as the run proceeds, so a killed run leaves at most half a line, which the next run drops.
"""

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from hypernet.data.validation_split import RECORD
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError

MAX_NAME_BYTES = 180  # without the suffix; file systems allow 255


class Record:
    """The options a folder was made with, and what is planned or done for each source image.

    An entry has "source" and "base": paths in the two folders with forward slashes, the second without its suffix. Once
    the image is done it also has "stamp", "width", "height", "size", "boxes", "thumbnail" and "files"; if the image was
    skipped, it has "left_out" with the reason.
    """

    def __init__(self, folder: Path):
        """Read the folder's record, if it has one.

        Raises:
            UserError: if the file is not such a record.
        """
        self.folder, self.path = folder, folder / RECORD
        self.options: dict[str, Any] | None = None
        self.entries: dict[str, dict[str, Any]] = {}
        self.sheet = False  # whether prepare.py wrote the sheet beside the folder
        for line in self._read_lines():
            self.options = line.get("options", self.options)
            self.sheet = line.get("sheet", self.sheet)
            if "source" in line:
                self.entries[line["source"]] = line

    def _read_lines(self) -> list[dict[str, Any]]:
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]  # the last one is empty, or half a line
            found = [json.loads(line) for line in lines]
            if all(isinstance(line, dict) for line in found) and (not found or "options" in found[0]):
                return found
        except FileNotFoundError:
            return []
        except ValueError:
            pass
        raise UserError(f"{self.path}: it is not a record of prepare.py; name another folder, or delete the file")

    def foreign_file(self) -> Path | None:
        """Return a file that cannot belong to a folder of images, if the folder has one and no record."""
        if self.options is not None or not self.folder.is_dir():
            return None
        known = {*Image.registered_extensions(), ".txt", ".jsonl", ".csv", ""}
        return next((path for path in sorted(self.folder.iterdir()) if path.suffix.lower() not in known), None)

    def is_done(self, source: str) -> bool:
        """Return whether every file made from this image exists."""
        files = self.entries.get(source, {}).get("files")
        return files is not None and all((self.folder / name).exists() for name in files)

    def made_files(self) -> list[Path]:
        """Return the files made so far that still exist, including those of images that were not finished."""
        names = {name for entry in self.entries.values() for name in entry.get("files", [])}
        unfinished = {entry["base"] for entry in self.entries.values() if not {"files", "left_out"} & set(entry)}
        options = self.options or {}
        for name in existing_files(self.folder) if unfinished else ():
            if unfinished & set(possible_bases(stem_of(name), options.get("split", False), options.get("flip", False))):
                names.add(name)
        root = os.path.realpath(self.folder)
        paths = [self.folder / name for name in sorted(names)]
        return [path for path in paths if path.is_file() and Path(os.path.realpath(path)).is_relative_to(root)]

    def begin(self, options: dict[str, Any]) -> None:
        """Write a new record with all that is known, before any other file is written."""
        self.options = options
        with atomic_write(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for line in ({"options": options, "sheet": self.sheet}, *self.entries.values()):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def append(self, line: dict[str, Any]) -> None:
        """Append a line, and remember it if it is an image's entry."""
        if "source" in line:
            self.entries[line["source"]] = line
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def clear(self) -> None:
        """Delete every file made so far, and forget all images."""
        for path in self.made_files():
            path.unlink()
        self.entries = {}


# --- Names


def stem_of(name: str) -> str:
    """Return a path without its suffix, with forward slashes."""
    return str(PurePosixPath(name).with_suffix(""))


def output_stems(base: str, count: int, flip: bool) -> list[str]:
    """Return the stems of the `count` parts of an image, each followed by its mirrored copy if `flip`."""
    parts = [base] if count == 1 else [f"{base}-{i}" for i in range(1, count + 1)]
    return [name for part in parts for name in ([part, f"{part}-flipped"] if flip else [part])]


def possible_bases(stem: str, split: bool, flip: bool) -> list[str]:
    """Return every base from which `output_stems` could make this stem."""
    found = [stem]
    if flip and stem.endswith("-flipped"):
        found.append(stem.removesuffix("-flipped"))
    if split:
        found += [re.sub(r"-\d+$", "", name) for name in found]
    return list(dict.fromkeys(found))


def printable(text: str) -> str:
    """Replace characters that cannot be printed."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def name_key(stem: str) -> str:
    """Return a key that is equal for names that some file system takes for the same."""
    return unicodedata.normalize("NFC", stem).casefold()


def existing_files(folder: Path) -> list[str]:
    """Return the PNG and TXT files below a folder, relative to it, with forward slashes."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in (".png", ".txt")]


@dataclasses.dataclass
class BaseNames:
    """Assigns each source image a base name for its outputs, so that no two images share an output.

    An image keeps the name it got in an earlier run. A second "cat" is named after its file type, "cat-jpg".
    """

    record: Record
    split: bool
    flip: bool

    def __post_init__(self) -> None:
        self.bases: set[str] = set()
        self.taken: set[str] = set()
        self.foreign: dict[str, str] = {}  # base -> a file that prepare.py did not make and that an output could hit
        for entry in self.record.entries.values():
            self._take(entry["base"])
        for name in sorted(existing_files(self.record.folder)):
            keys = self._base_keys(stem_of(name))
            if not self.bases.intersection(keys):
                self.foreign |= dict.fromkeys(keys, name)

    def _base_keys(self, stem: str) -> list[str]:
        return [name_key(base) for base in possible_bases(stem, self.split, self.flip)]

    def _take(self, base: str) -> None:
        self.bases.add(name_key(base))
        self.taken.update(self._base_keys(base))

    def _is_free(self, base: str) -> bool:
        return name_key(base) not in self.taken and not self.bases.intersection(self._base_keys(base))

    def assign(self, source: str) -> str:
        """Return the base name of an image.

        Raises:
            ValueError: with the reason, if every name is taken or a file that prepare.py did not make is in the way.
        """
        if source in self.record.entries:
            return self.record.entries[source]["base"]
        path = PurePosixPath(source)
        stem = path.stem
        if len(stem.encode()) > MAX_NAME_BYTES:
            digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
            stem = f"{stem.encode()[: MAX_NAME_BYTES - 9].decode(errors='ignore')}-{digest}"
        kind = path.suffix[1:].lower()
        choices = [stem, f"{stem}-{kind}", *(f"{stem}-{kind}-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
        base = next((str(path.with_name(name)) for name in choices if self._is_free(str(path.with_name(name)))), None)
        if base is None:
            raise ValueError("too many images have this name; rename it")
        if name_key(base) in self.foreign:
            obstacle = self.record.folder / self.foreign[name_key(base)]
            raise ValueError(
                f"{obstacle} is in the way and was not made by prepare.py; move it, or name another folder"
            )
        self._take(base)
        return base
