"""Read plain data from a pickled file without running code, and without taking more memory than its size warrants.

The pickle is first scanned opcode by opcode. The scanner knows only the opcodes that `torch.save` writes for dicts,
lists and tensors, and compares the declared sizes of every tensor with the bytes in the file. Only files that pass
reach `torch.load(weights_only=True)`; from a zip, only the scanned records do.
"""

import dataclasses
import hashlib
import io
import math
import mmap
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hashing import file_sha256

ZIP = b"PK\x03\x04"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch.save's legacy format
MAX_OPCODES = 200_000  # per pickle; a hypernetwork's has a few thousand
TRAILER = b"\nhypernet sha256 "  # follows a legacy file's last storage, where no reader looks; then 64 hex digits
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
}
CALLABLES = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
VALUES: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES |= {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")  # opcodes that push their argument
HYPERNETWORK_FILE = "a hypernetwork file"
DAMAGED_PICKLE, UNKNOWN_PICKLE = "its pickle is damaged", "its pickle has content that no hypernetwork has"
UNREADABLE: tuple[type[Exception], ...] = (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, LookupError, TypeError)
UNREADABLE += (ValueError, AttributeError, AssertionError, OverflowError, MemoryError)
UNREADABLE += (RuntimeError,)  # with its subclasses NotImplementedError and RecursionError
Check = Callable[[Any], None]


class NotAHypernetwork(UserError):
    """The file cannot be read as a hypernetwork. The message is one line: the file and what is wrong with it."""


class _Refused(ValueError):
    """Stops the reading of a file. The message is the reason."""


def read_plain(path: str | Path, check: Check = lambda content: None, kind: str = HYPERNETWORK_FILE) -> Any:
    """Return the dicts, lists, numbers, strings and tensors that `torch.save` has written to a file.

    Tensors are on the CPU.

    Args:
        check: called with the file's content, None in place of each tensor, before any tensor is loaded; may raise.
        kind: what the file should be, for messages, with its article: "a hypernetwork file".

    Raises:
        NotAHypernetwork: if the file is something else (a LoRA, a model, ...), is damaged, or holds anything but
            plain data.
    """
    path = Path(path)
    words: list[str] = []
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"":
                raise _Refused("it is empty")
            file.seek(0)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[: len(ZIP)] == ZIP:
                    return _read_zip(file, words, check)
                return _read_legacy(file, content, words, check)
    except OSError as error:
        raise NotAHypernetwork(f"{path}: it cannot be read ({error.strerror or error})") from None
    except NotAHypernetwork:
        raise
    except UNREADABLE as error:
        found = kind_of(words) if kind == HYPERNETWORK_FILE else None
        if found:
            raise NotAHypernetwork(f"{path}: it is not a hypernetwork but {found}") from None
        reason = str(error) if isinstance(error, _Refused) else "its parts contradict each other"
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


def _read_zip(file: BinaryIO, words: list[str], check: Check) -> Any:
    """Read an uncompressed zip with one pickle and, for each storage, a record of the right size.

    torch reads a new zip of these records only, because its zip reader may see other records in the original file.
    """
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused("it is compressed")
        if sum(records.values()) > os.fstat(file.fileno()).st_size or len(records) < len(archive.infolist()):
            raise _Refused("it declares more than it holds")
        names = [name for name in records if name.endswith("data.pkl")]
        if len(names) != 1:
            raise _Refused("it has no data.pkl, or more than one")
        scan = _Scanner(io.BytesIO(archive.read(names[0])), words)
        folder = names[0].removesuffix("data.pkl")
        storages = {f"{folder}data/{key}": storage.bytes for key, storage in scan.storages.items()}
        if any(records.get(name) != size for name, size in storages.items()):
            raise _Refused("some of its tensors are missing")
        check(scan.content)
        with zipfile.ZipFile(checked := io.BytesIO(), "w") as copy:
            for name in (names[0], *storages, *(folder + name for name in ("version", "byteorder"))):
                if name in records:
                    copy.writestr(f"archive/{name.removeprefix(folder)}", archive.read(name))
    checked.seek(0)
    return torch.load(checked, map_location="cpu", weights_only=True)


def _read_legacy(file: BinaryIO, content: mmap.mmap, words: list[str], check: Check) -> Any:
    """Read the legacy format: five pickles (magic, version, machine, data, storage keys), storages, our trailer."""
    if content[: len(MAGIC)] != MAGIC:
        words.append(content[:20].decode("latin-1"))  # its first bytes may reveal what it is
        raise _Refused("its first bytes are wrong")
    content.seek(len(MAGIC))
    _, _, scan, keys = [_Scanner(content, words) for _ in range(4)]
    if type(keys.content) is not list or sorted(keys.content) != sorted(scan.storages):
        raise _Refused("some of its tensors are missing")  # torch would fill them with uninitialized memory
    end = content.tell()
    for storage in map(scan.storages.__getitem__, keys.content):
        if int.from_bytes(content[end : end + 8], "little") != storage.elements:
            raise _Refused("some of its tensors are missing")
        end += 8 + storage.bytes
    if end > len(content):
        raise _Refused("it is cut off")
    check(scan.content)
    with memoryview(content) as view, view[:end] as covered, view[end:] as rest:
        if rest and rest != TRAILER + hashlib.sha256(covered).hexdigest().encode():
            raise _Refused("its checksum is wrong")
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_key(key: Any) -> bool:
    """Whether this can be a storage's key. torch numbers storages; a zip reader may resolve other names differently."""
    return type(key) is str and key.isascii() and key.isdigit()


@dataclasses.dataclass
class _Storage:
    dtype: torch.dtype
    elements: int

    @property
    def bytes(self) -> int:
        return self.elements * self.dtype.itemsize


class _Global(str):
    """A class or function that the pickle names, such as "collections OrderedDict"."""


class _Scanner:
    """A small unpickler for one pickle: it builds only dicts, lists and tuples, and calls nothing.

    Only strings and numbers may be dict keys, because hashing nested tuples can take forever.

    Attributes:
        content: what the pickle holds, None in place of each tensor.
        storages: the storages of its tensors by key.
    """

    def __init__(self, pickled: Any, words: list[str]):
        """Scan the file-like object `pickled` up to the end of a pickle, and append all its strings to `words`."""
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._used = 0  # bytes of all tensors
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > MAX_OPCODES:
                raise _Refused("its pickle is far too long")
            if opcode.name in ("GLOBAL", "BINUNICODE"):
                words.append(str(argument))
            self._step(opcode.name, argument)
        (self.content,) = self._stack
        if self._used > sum(storage.bytes for storage in self.storages.values()):
            raise _Refused("its tensors are larger than its data")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in VALUES:
            stack.append(VALUES[name]())
        elif name in ARGUMENTS:
            if type(argument) is int and abs(argument) >= 1 << 63:
                raise _Refused("it holds too large a number")
            stack.append(argument)
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(None if name == "TUPLE" else int(name[5:]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1 if name == "APPEND" else None)
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2 if name == "SETITEM" else None))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "GLOBAL":
            if argument not in STORAGES and argument not in CALLABLES:
                raise _Refused(f"it names {argument.replace(' ', '.')!a}, which no hypernetwork needs")
            stack.append(_Global(argument))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "BUILD":  # the attributes of an OrderedDict: a state dict's _metadata
            (attributes,) = self._pop(1)
            self._top(dict)
            if type(attributes) is not dict or attributes.keys() - {"_metadata"}:
                raise _Refused(UNKNOWN_PICKLE)
        elif name == "BINPERSID":
            stack.append(self._storage(*self._pop(1)))
        elif name not in ("PROTO", "STOP"):
            raise _Refused(UNKNOWN_PICKLE)

    def _pop(self, count: int | None) -> list[Any]:
        """Pop the last `count` items, or those above the last mark."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise _Refused(DAMAGED_PICKLE)
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise _Refused(DAMAGED_PICKLE)
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not all(type(key) in (str, int) for key in keys):
            raise _Refused(UNKNOWN_PICKLE)
        self._top(dict).update(zip(keys, values, strict=True))

    def _storage(self, saved_id: Sequence[Any]) -> _Storage:
        kind, dtype, key, _, elements, *_ = saved_id
        if kind != "storage" or dtype not in STORAGES or not _is_key(key) or type(elements) is not int or elements < 0:
            raise _Refused("a tensor's data is malformed")
        storage = self.storages.setdefault(key, _Storage(STORAGES[dtype], elements))
        if (storage.dtype, storage.elements) != (STORAGES[dtype], elements):
            raise _Refused("a tensor's data has two different types or sizes")
        return storage

    def _call(self, function: Any, arguments: Any) -> dict | None:
        """Return a placeholder for the call's result: a dict, or None for a tensor, checked to fit into its storage."""
        if type(function) is not _Global or function in STORAGES or type(arguments) is not tuple:
            raise _Refused(DAMAGED_PICKLE)
        if function == "collections OrderedDict":
            if arguments:
                raise _Refused(UNKNOWN_PICKLE)
            return {}
        if function == "torch._utils _rebuild_tensor_v2":
            self._check_tensor(*arguments)
        return None

    def _check_tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> None:
        numbers = [offset, *sizes[:9], *strides[:9]]
        if len(sizes) > 8 or type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused("a tensor's shape is malformed")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if math.prod(sizes) > storage.elements or 0 not in sizes and last >= storage.elements:
            raise _Refused("a tensor is larger than its data")
        self._used += math.prod(sizes) * storage.dtype.itemsize
