"""What prepare.py made in a folder, kept there in prepare.jsonl, and which names new files get.

The first line holds the options; then there is one line for each picture that is planned and one for each that is done,
appended as it goes: a run that is killed leaves at most half a line, which the next one drops.
"""

import dataclasses
import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path, PurePosixPath

from PIL import Image

from hypernet.data.validation_split import RECORD
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError

LONGEST = 180  # bytes of a name before its ending; file systems take 255


class Record:
    """The options that a folder was made with, and for each source what is planned or made of it.

    An entry has "source" and "base" (paths in the two folders, with slashes, the latter without ending), and once it is
    done "stamp", "width", "height", "size", "boxes", "thumbnail" and "files", or, if nothing was made of it, "left_out".
    """

    def __init__(self, folder: Path):
        """Read what there is. Raises: UserError if it is no such file."""
        self.folder, self.path = folder, folder / RECORD
        self.options, self.sheet, self.entries = None, False, {}
        for line in self._lines():
            self.options = line.get("options", self.options)
            self.sheet = line.get("sheet", self.sheet)
            if "source" in line:
                self.entries[line["source"]] = line

    def _lines(self):
        try:
            lines = self.path.read_bytes().split(b"\n")[:-1]  # the last one is empty, or half a line
            found = [json.loads(line) for line in lines]
            if all(isinstance(line, dict) for line in found) and (not found or "options" in found[0]):
                return found
        except FileNotFoundError:
            return []
        except ValueError:
            pass
        raise UserError(f"{self.path}: it is no record of prepare.py; name another folder, or delete the file")

    def foreign_file(self) -> Path | None:
        """A file that shows that the folder is of another kind: in a folder without a record, one that no picture goes with."""
        if self.options is not None or not self.folder.is_dir():
            return None
        known = {*Image.registered_extensions(), ".txt", ".jsonl", ".csv", ""}
        return next((path for path in sorted(self.folder.iterdir()) if path.suffix.lower() not in known), None)

    def differences(self, options: dict) -> list[str]:
        """The names of options that were others when the folder was made."""
        if self.options is None:
            return []
        return [name for name in options if options[name] != self.options.get(name)]

    def is_done(self, source: str) -> bool:
        """Whether everything that is made of this picture is there."""
        files = self.entries.get(source, {}).get("files")
        return files is not None and all((self.folder / name).exists() for name in files)

    def own_files(self) -> list[Path]:
        """All that was made and is still there, finished or not."""
        named = {name for entry in self.entries.values() for name in entry.get("files", [])}
        unfinished = (entry for entry in self.entries.values() if not {"files", "left_out"} & set(entry))
        bases = {entry["base"] for entry in unfinished}
        for name in existing_files(self.folder) if bases else ():
            if bases & set(roots(stem_of(name), self.options.get("split"), self.options.get("flip"))):
                named.add(name)
        root = os.path.realpath(self.folder)
        paths = [self.folder / name for name in sorted(named)]
        return [path for path in paths if path.is_file() and Path(os.path.realpath(path)).is_relative_to(root)]

    def begin(self, options: dict):
        """Write all that is known into a new file, before anything else is written."""
        self.options = options
        with atomic_write(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            for line in ({"options": options, "sheet": self.sheet}, *self.entries.values()):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def append(self, line: dict):
        """Add what has been done."""
        if "source" in line:
            self.entries[line["source"]] = line
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def clear(self):
        """Delete all that was made, and forget it."""
        for path in self.own_files():
            path.unlink()
        self.entries = {}


# --- Names


def stem_of(name: str) -> str:
    """A path without its ending, with slashes."""
    return str(PurePosixPath(name).with_suffix(""))


def output_names(base: str, count: int, flip: bool) -> list[str]:
    """Stems of the pictures that become of one: its own, or numbered ones for its parts, each with its mirrored copy."""
    parts = [base] if count == 1 else [f"{base}-{i}" for i in range(1, count + 1)]
    return [name for part in parts for name in ([part, f"{part}-flipped"] if flip else [part])]


def roots(stem: str, split: bool, flip: bool) -> list[str]:
    """The bases that an output called so may have come of."""
    found = [stem]
    if flip and stem.endswith("-flipped"):
        found.append(stem.removesuffix("-flipped"))
    if split:
        found += [re.sub(r"-\d+$", "", name) for name in found]
    return list(dict.fromkeys(found))


def printable(text: str) -> str:
    """A name as it can be written in a line."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def same_name(stem: str) -> str:
    """What is equal for names that are one and the same on some file system."""
    return unicodedata.normalize("NFC", stem).casefold()


def existing_files(folder: Path) -> list[str]:
    """All PNG and TXT files below the folder, with slashes."""
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
    return [path.relative_to(folder).as_posix() for path in paths if path.suffix.lower() in (".png", ".txt")]


@dataclasses.dataclass
class Names:
    """Gives every source a base name from which the names of its outputs follow, none of which is another one's.

    What a source was called before, it stays; a second "cat" is called after its kind of file, "cat-jpg".
    """

    record: Record
    split: bool
    flip: bool

    def __post_init__(self):
        self.bases, self.taken, self.foreign = set(), set(), {}
        for entry in self.record.entries.values():
            self._take(entry["base"])
        for name in sorted(existing_files(self.record.folder)):
            found = self._roots(stem_of(name))
            if not self.bases.intersection(found):
                self.foreign |= {root: name for root in found}

    def _roots(self, stem):
        return [same_name(root) for root in roots(stem, self.split, self.flip)]

    def _take(self, base):
        self.bases.add(same_name(base))
        self.taken.update(self._roots(base))

    def _is_free(self, base):
        return same_name(base) not in self.taken and not self.bases.intersection(self._roots(base))

    def base(self, source: str) -> str:
        """The base name of a picture. Raises: ValueError if a file is in its way that prepare.py has not made."""
        if source in self.record.entries:
            return self.record.entries[source]["base"]
        path = PurePosixPath(source)
        stem = path.stem
        if len(stem.encode()) > LONGEST:
            mark = hashlib.sha256(stem.encode()).hexdigest()[:8]
            stem = f"{stem.encode()[: LONGEST - 9].decode(errors='ignore')}-{mark}"
        kind = path.suffix[1:].lower()
        choices = [stem, f"{stem}-{kind}", *(f"{stem}-{kind}-{letter}" for letter in "abcdefghijklmnopqrstuvwxyz")]
        base = next((str(path.with_name(name)) for name in choices if self._is_free(str(path.with_name(name)))), None)
        if base is None:
            raise ValueError("too many pictures are called so; rename it")
        if same_name(base) in self.foreign:
            name = self.record.folder / self.foreign[same_name(base)]
            raise ValueError(f"{name} is in its way, which this script has not made; move it, or name another folder")
        self._take(base)
        return base
