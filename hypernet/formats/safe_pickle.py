"""Read plain data from a pickled file without running code, and without taking more memory than its size warrants."""

import hashlib
import io
import mmap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hashing import file_sha256
from hypernet.utils.pickle_scanner import Refused, scan_saved

TRAILER = b"\nhypernet sha256 "  # follows a legacy file's last storage, where no reader looks; then 64 hex digits
HYPERNETWORK_FILE = "a hypernetwork file"
Check = Callable[[Any], None]


class NotAHypernetwork(UserError):
    """The file cannot be read as a hypernetwork. The message is one line: the file and what is wrong with it."""


def read_plain(path: str | Path, check: Check = lambda content: None, kind: str = HYPERNETWORK_FILE) -> Any:
    """Return the dicts, lists, numbers, strings and tensors that `torch.save` has written to a file.

    Tensors are on the CPU.

    Args:
        check: called with the file's content, its tensors on the meta device, before any is loaded; may raise.
        kind: what the file should be, for messages, with its article: "a hypernetwork file".

    Raises:
        NotAHypernetwork: if the file is something else (a LoRA, a model, ...), is damaged, or holds anything but
            plain data.
    """
    path = Path(path)
    try:
        scan = scan_saved(path)
        if scan.overlaps:
            raise Refused("its tensors are larger than its data")
        check(scan.content)
        with open(path, "rb") as file:
            return _load_legacy(file, scan.end) if scan.records is None else _load_zip(file, scan.records)
    except OSError as error:
        raise NotAHypernetwork(f"{path}: it cannot be read ({error.strerror or error})") from None
    except NotAHypernetwork:
        raise
    except Exception as error:  # damaged files raise errors of any kind
        found = kind_of(error.words) if isinstance(error, Refused) and kind == HYPERNETWORK_FILE else None
        if found:
            raise NotAHypernetwork(f"{path}: it is not a hypernetwork but {found}") from None
        reason = str(error) if isinstance(error, Refused) else "its parts contradict each other"
        raise NotAHypernetwork(
            f"{path}: it is not {kind}, or it is damaged ({reason}; no code in it was run)"
        ) from None


def write_plain(data: Any, path: str | Path) -> None:
    """Write data for `read_plain` in torch's legacy format, which every version of the WebUI accepts.

    The SHA-256 of everything before it is appended, so that any later change to the file is detected.
    """
    with atomic_write(path) as temporary:
        torch.save(data, temporary, _use_new_zipfile_serialization=False)
        trailer = TRAILER + file_sha256(temporary).encode()
        with open(temporary, "ab") as file:
            file.write(trailer)


def _load_zip(file: BinaryIO, records: dict[str, str]) -> Any:
    """Load a zip's records, given with their names in the file and in torch's archives.

    torch reads a new zip with only these records, because its zip reader may see other records in the original file.
    """
    with zipfile.ZipFile(file) as archive, zipfile.ZipFile(checked := io.BytesIO(), "w") as copy:
        for name, new_name in records.items():
            copy.writestr(new_name, archive.read(name))
    checked.seek(0)
    return torch.load(checked, map_location="cpu", weights_only=True)


def _load_legacy(file: BinaryIO, end: int) -> Any:
    """Load the legacy format. The data ends at `end`; our trailer may follow."""
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        with memoryview(content) as view, view[:end] as covered, view[end:] as rest:
            if rest and rest != TRAILER + hashlib.sha256(covered).hexdigest().encode():
                raise Refused("its checksum is wrong")
    return torch.load(file, map_location="cpu", weights_only=True)
