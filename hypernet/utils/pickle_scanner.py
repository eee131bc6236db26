"""Scan what `torch.save` has written without running code, in time and memory that the file's size warrants.

The scanner goes through the pickle opcode by opcode. It knows only the opcodes that `torch.save` writes for dicts,
lists and tensors, and compares the declared sizes of every tensor with the bytes in the file. A file that passes can be
given to `torch.load(weights_only=True)`, which by itself may run forever, or fail with errors of any kind.
"""

import dataclasses
import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hypernet.utils.file_kinds import check_file

ZIP = b"PK\x03\x04"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch.save's legacy format
MAX_OPCODES = 500_000  # per pickle; a hypernetwork's has a few thousand, that of a training state of SDXL 200,000
MAX_DIRECTORY = 2**23  # bytes of a zip's directory, which takes about 70 per tensor
STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Double": torch.float64,
        "Int": torch.int32,
        "Long": torch.int64,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
CALLABLES = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
VALUES: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
VALUES |= {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")  # opcodes that push their argument
DAMAGED_PICKLE, UNKNOWN_PICKLE = "its pickle is damaged", "its pickle has more than numbers, texts and tensors"


class Refused(ValueError):
    """The file is not what `torch.save` writes for plain data. The message is the reason.

    Attributes:
        words: the names and texts found before the refusal, which may reveal what the file is.
    """

    words: Sequence[str] = ()


class RefusedCode(Refused):
    """The file names a function or class that is not needed for plain data, and that might do harm."""


@dataclasses.dataclass
class Scan:
    """The content and layout of a file."""

    content: Any  # tensors are on the meta device
    records: dict[str, str] | None  # of a zip: name in the file -> name in an archive of torch's
    end: int  # of the legacy format: where the last tensor ends
    overlaps: bool  # whether tensors share data, so that copies of all of them take more than the file


def scan_saved(path: str | Path) -> Scan:
    """Scan a file that `torch.save` has written.

    Raises:
        Refused: if it is something else, is damaged, or holds anything but plain data.
        OSError: if it cannot be read, or is not a regular file.
    """
    check_file(path)
    words: list[str] = []
    with open(path, "rb") as file:
        try:
            if file.read(1) == b"":
                raise Refused("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                is_zip = content[: len(ZIP)] == ZIP
                return _scan_zip(file, content, words) if is_zip else _scan_legacy(content, words)
        except Refused as error:
            error.words = words
            raise
        except Exception as error:  # damaged files raise errors of any kind
            refused = Refused("its parts contradict each other")
            refused.words = words
            raise refused from error


def _scan_zip(file: BinaryIO, content: mmap.mmap, words: list[str]) -> Scan:
    """Scan an uncompressed zip with one pickle and, for each storage, a record of the right size."""
    _check_directory(content)
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise Refused("it is compressed")
        if sum(records.values()) > len(content) or len({*map(str.lower, records)}) < len(archive.infolist()):
            raise Refused("it declares more than it holds")
        pickles = [name for name in records if name.endswith(".pkl")]
        folder = pickles[0].removesuffix("data.pkl") if pickles else ""
        if len(pickles) != 1 or folder.count("/") != 1 or not all(name.startswith(folder) for name in records):
            raise Refused("it has no data.pkl, or more than one, or other files")
        scan = _Scanner(io.BytesIO(archive.read(pickles[0])), words)
        storages = {f"{folder}data/{key}": storage.bytes for key, storage in scan.storages.items()}
        if any(records.get(name) != size for name, size in storages.items()):
            raise Refused("some of its tensors are missing")
        names = (pickles[0], *storages, *(folder + name for name in ("version", "byteorder")))
        kept = {name: f"archive/{name.removeprefix(folder)}" for name in names if name in records}
        return Scan(scan.content, kept, 0, scan.overlaps)


def _check_directory(content: mmap.mmap) -> None:
    """Refuse a zip whose directory is huge, or is not at its end, so that other readers may see other records."""
    start = len(content) - 22
    signature, size, offset, comment = struct.unpack("<4s8xIIH", content[start:])
    locator, place = struct.unpack("<4s4xQ4x", content[start - 20 : start])
    if locator == b"PK\x06\x07":  # zip64: larger numbers in another record
        start, (size, offset) = place, struct.unpack("<QQ", content[place + 40 : place + 56])
    if signature != b"PK\x05\x06" or comment or offset + size != start:
        raise Refused("its directory is damaged")
    if size > MAX_DIRECTORY:
        raise Refused("it has far too many parts")


def _scan_legacy(content: mmap.mmap, words: list[str]) -> Scan:
    """Scan the legacy format: five pickles (magic, version, machine, data, storage keys), then the storages."""
    if content[: len(MAGIC)] != MAGIC:
        words.append(content[:64].decode("latin-1").lstrip())  # its first bytes may reveal what it is
        raise Refused("its first bytes are wrong")
    content.seek(len(MAGIC))
    _, _, scan, keys = [_Scanner(content, words) for _ in range(4)]
    if type(keys.content) is not list or sorted(keys.content) != sorted(scan.storages):
        raise Refused("some of its tensors are missing")  # torch would fill them with uninitialized memory
    end = content.tell()
    for storage in map(scan.storages.__getitem__, keys.content):
        if int.from_bytes(content[end : end + 8], "little") != storage.elements:
            raise Refused("some of its tensors are missing")
        end += 8 + storage.bytes
    if end > len(content):
        raise Refused("it is cut off")
    return Scan(scan.content, None, end, scan.overlaps)


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
        content: what the pickle holds, with tensors on the meta device.
        storages: the storages of its tensors by key.
        overlaps: whether its tensors together are larger than their storages.
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
                raise Refused("its pickle is far too long")
            if opcode.name in ("GLOBAL", "BINUNICODE"):
                words.append(str(argument)[:200])
            self._step(opcode.name, argument)
        (self.content,) = self._stack
        self.overlaps = self._used > sum(storage.bytes for storage in self.storages.values())

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in VALUES:
            stack.append(VALUES[name]())
        elif name in ARGUMENTS:
            if type(argument) is int and abs(argument) >= 1 << 63:
                raise Refused("it holds too large a number")
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
                raise RefusedCode(f"it names {argument.replace(' ', '.')[:80]!a}, which is not data")
            stack.append(_Global(argument))
        elif name == "REDUCE":
            function, arguments = self._pop(2)
            stack.append(self._call(function, arguments))
        elif name == "BUILD":  # the attributes of an OrderedDict: a state dict's _metadata
            (attributes,) = self._pop(1)
            self._top(dict)
            if type(attributes) is not dict or attributes.keys() - {"_metadata"}:
                raise Refused(UNKNOWN_PICKLE)
        elif name == "BINPERSID":
            stack.append(self._storage(*self._pop(1)))
        elif name not in ("PROTO", "STOP"):
            raise Refused(UNKNOWN_PICKLE)

    def _pop(self, count: int | None) -> list[Any]:
        """Pop the last `count` items, or those above the last mark."""
        start = self._marks.pop() if count is None else len(self._stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise Refused(DAMAGED_PICKLE)
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise Refused(DAMAGED_PICKLE)
        return self._stack[-1]

    def _set_items(self, items: list[Any]) -> None:
        keys, values = items[::2], items[1::2]
        if not all(type(key) in (str, int) for key in keys):
            raise Refused(UNKNOWN_PICKLE)
        self._top(dict).update(zip(keys, values, strict=True))

    def _storage(self, saved_id: Sequence[Any]) -> _Storage:
        kind, dtype, key, _, elements, *_ = saved_id
        if kind != "storage" or dtype not in STORAGES or not _is_key(key) or type(elements) is not int or elements < 0:
            raise Refused("a tensor's data is malformed")
        storage = self.storages.setdefault(key, _Storage(STORAGES[dtype], elements))
        if (storage.dtype, storage.elements) != (STORAGES[dtype], elements):
            raise Refused("a tensor's data has two different types or sizes")
        return storage

    def _call(self, function: Any, arguments: Any) -> Any:
        """Return the call's result: a dict, or a tensor on the meta device, checked to fit into its storage."""
        if type(function) is not _Global or function in STORAGES or type(arguments) is not tuple:
            raise Refused(DAMAGED_PICKLE)
        if function == "collections OrderedDict":
            if arguments:
                raise Refused(UNKNOWN_PICKLE)
            return {}
        if function == "torch._utils _rebuild_tensor_v2":
            return self._tensor(*arguments)
        if not isinstance(arguments[0], torch.Tensor):
            raise Refused(DAMAGED_PICKLE)
        return arguments[0]

    def _tensor(self, storage: Any, offset: Any, sizes: Any, strides: Any, *_: Any) -> torch.Tensor:
        numbers = [offset, *sizes[:9], *strides[:9]]
        if len(sizes) > 8 or type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise Refused("a tensor's shape is malformed")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if math.prod(sizes) > storage.elements or 0 not in sizes and last >= storage.elements:
            raise Refused("a tensor is larger than its data")
        self._used += math.prod(sizes) * storage.dtype.itemsize
        return torch.empty(sizes, dtype=storage.dtype, device="meta")
