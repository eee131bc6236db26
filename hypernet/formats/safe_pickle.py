"""Plain data in a pickled file. Reading it runs nothing, and makes nothing that the file is too small to hold.

First an outline is made of the pickle, opcode by opcode: only those that `torch.save` writes for dicts, lists and tensors
are known, and every tensor is a record of its sizes, which are held against the bytes that the file has for it. Only what
has passed goes to `torch.load(weights_only=True)`, and of a zip only the very records that were looked at.
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
from collections.abc import Callable
from pathlib import Path

import torch

from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hashing import file_sha256

ZIP = b"PK\x03\x04"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch.save's legacy format
MOST_OPCODES = 200_000  # of a pickle; a hypernetwork has some thousand
TRAILER = b"\nhypernet sha256 "  # after a legacy file's last storage, where no reader looks; then 64 hex digits
STORAGES = {
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch DoubleStorage": torch.float64,
    "torch IntStorage": torch.int32,
    "torch LongStorage": torch.int64,
}
CALLABLES = ("collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter")
VALUES = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None}
VALUES |= {"NEWTRUE": lambda: True, "NEWFALSE": lambda: False}
ARGUMENTS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")  # opcodes that push their argument
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, TypeError, ValueError)
UNREADABLE += (AttributeError, AssertionError, NotImplementedError, OverflowError, MemoryError, RecursionError)


class NotAHypernetwork(UserError):
    """The file cannot be read as a hypernetwork. The message is one line: the file and what is wrong with it."""


class _Refused(ValueError):
    """Why a file is not read any further."""


def read_plain(path, expect: Callable[[object], None] = lambda outline: None, what="hypernetwork file") -> object:
    """The dicts, lists, numbers, strings and tensors that `torch.save` has put into a file, tensors on the CPU.

    Args:
        expect: called with what is in the file, None in place of each tensor, before any is loaded; may raise.
        what: the file should be, for messages.

    Raises:
        NotAHypernetwork: for a file that is something else (a LoRA, a checkpoint, …), holds anything besides, or is
            damaged; in one line.
    """
    path = Path(path)
    strings = []
    try:
        with open(path, "rb") as file:
            if file.read(1) == b"":
                raise _Refused("it is empty")
            file.seek(0)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if content[: len(ZIP)] == ZIP:
                    return _read_zip(file, strings, expect)
                return _read_legacy(file, content, strings, expect)
    except OSError as error:
        raise NotAHypernetwork(f"{path}: it cannot be read ({error.strerror or error})") from None
    except NotAHypernetwork:
        raise
    except UNREADABLE as error:
        kind = kind_of(strings) if what == "hypernetwork file" else None
        if kind:
            raise NotAHypernetwork(f"{path}: it is no hypernetwork but {kind}") from None
        reason = str(error) if isinstance(error, _Refused) else "its parts do not fit together"
        raise NotAHypernetwork(f"{path}: it is no {what}, or a damaged one ({reason}; nothing of it was run)") from None


def write_plain(data, path):
    """Write what `read_plain` reads, in torch's legacy format, which every version of the WebUI lets through.

    The sha256 of it all is added to its end, so that every later change of the file is noticed.
    """
    with atomic_write(path) as temporary:
        torch.save(data, temporary, _use_new_zipfile_serialization=False)
        trailer = TRAILER + file_sha256(temporary).encode()
        with open(temporary, "ab") as file:
            file.write(trailer)


def _read_zip(file, strings, expect):
    """A zip: stored, not compressed, no larger than the file; one pickle, a record of the right size for each storage.

    torch gets a zip of these records alone: another reader may see other records in the same file.
    """
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused("it is compressed")
        if sum(records.values()) > os.fstat(file.fileno()).st_size or len(records) < len(archive.infolist()):
            raise _Refused("it declares more than it holds")
        names = [name for name in records if name.endswith("data.pkl")]
        if len(names) != 1:
            raise _Refused("there is no data in it")
        outline = _Outline(io.BytesIO(archive.read(names[0])), strings)
        folder = names[0].removesuffix("data.pkl")
        storages = {f"{folder}data/{key}": storage.bytes for key, storage in outline.storages.items()}
        if any(records.get(name) != size for name, size in storages.items()):
            raise _Refused("its tensors are not all there")
        expect(outline.content)
        with zipfile.ZipFile(checked := io.BytesIO(), "w") as copy:
            for name in (names[0], *storages, *(folder + name for name in ("version", "byteorder"))):
                if name in records:
                    copy.writestr(f"archive/{name.removeprefix(folder)}", archive.read(name))
    checked.seek(0)
    return torch.load(checked, map_location="cpu", weights_only=True)


def _read_legacy(file, content, strings, expect):
    """Five pickles (magic number, version, machine, data, the storages' keys), the storages, and perhaps the trailer."""
    if content[: len(MAGIC)] != MAGIC:
        strings.append(content[:20].decode("latin-1"))  # a file of another kind may be known by its head
        raise _Refused("it does not begin as one")
    content.seek(len(MAGIC))
    _, _, outline, keys = [_Outline(content, strings) for _ in range(4)]
    if type(keys.content) is not list or sorted(keys.content) != sorted(outline.storages):
        raise _Refused("its tensors are not all there")  # torch would leave what memory holds in their place
    end = content.tell()
    for storage in map(outline.storages.get, keys.content):
        if int.from_bytes(content[end : end + 8], "little") != storage.elements:
            raise _Refused("its tensors are not all there")
        end += 8 + storage.bytes
    if end > len(content):
        raise _Refused("it ends too early")
    expect(outline.content)
    with memoryview(content) as view, view[:end] as covered, view[end:] as rest:
        if rest and rest != TRAILER + hashlib.sha256(covered).hexdigest().encode():
            raise _Refused("its checksum is wrong")
    return torch.load(file, map_location="cpu", weights_only=True)


def _is_key(key):
    """torch numbers its storages; of other names a zip's reader may make something else."""
    return type(key) is str and key.isascii() and key.isdigit()


@dataclasses.dataclass
class _Storage:
    dtype: torch.dtype
    elements: int

    @property
    def bytes(self):
        return self.elements * self.dtype.itemsize


class _Global(str):
    """A class or function that the pickle names: "module name"."""


class _Outline:
    """What one pickle holds, None in place of each tensor, and the storages that it names by their keys.

    A small unpickler: it knows the opcodes of plain data, makes nothing but dicts, lists and tuples, and calls nothing.
    Keys of dicts are words and numbers only, for nested tuples can be hashed for ever. `strings` gets all words in it.
    """

    def __init__(self, pickled, strings):
        self.stack, self.marks, self.memo, self.storages, self.used = [], [], {}, {}, 0
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count > MOST_OPCODES:
                raise _Refused("its pickle is far too long")
            if opcode.name in ("GLOBAL", "BINUNICODE"):
                strings.append(argument)
            self._step(opcode.name, argument)
        (self.content,) = self.stack
        if self.used > sum(storage.bytes for storage in self.storages.values()):
            raise _Refused("its tensors are larger than its data")

    def _step(self, name, argument):
        stack = self.stack
        if name in VALUES:
            stack.append(VALUES[name]())
        elif name in ARGUMENTS:
            if type(argument) is int and abs(argument) >= 1 << 63:
                raise _Refused("it holds a number too large")
            stack.append(argument)
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._pop(None if name == "TUPLE" else int(name[5:]))))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(1 if name == "APPEND" else None)
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items(self._pop(2 if name == "SETITEM" else None))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
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
                raise _Refused("its pickle is of a kind that no hypernetwork has")
        elif name == "BINPERSID":
            stack.append(self._storage(*self._pop(1)))
        elif name not in ("PROTO", "STOP"):
            raise _Refused("its pickle is of a kind that no hypernetwork has")

    def _pop(self, count):
        """The last `count` items, or those above the last mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise _Refused("its pickle is damaged")
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _top(self, kind):
        if type(self.stack[-1]) is not kind:
            raise _Refused("its pickle is damaged")
        return self.stack[-1]

    def _set_items(self, items):
        keys, values = items[::2], items[1::2]
        if not all(type(key) in (str, int) for key in keys):
            raise _Refused("its pickle is of a kind that no hypernetwork has")
        self._top(dict).update(zip(keys, values, strict=True))

    def _storage(self, saved_id):
        kind, dtype, key, _, elements, *_ = saved_id
        if kind != "storage" or dtype not in STORAGES or not _is_key(key) or type(elements) is not int or elements < 0:
            raise _Refused("a tensor has no data")
        storage = self.storages.setdefault(key, _Storage(STORAGES[dtype], elements))
        if (storage.dtype, storage.elements) != (STORAGES[dtype], elements):
            raise _Refused("a tensor's data is of two kinds")
        return storage

    def _call(self, function, arguments):
        """What the call would make: a dict, or None for a tensor that is no larger than its storage."""
        if type(function) is not _Global or function in STORAGES or type(arguments) is not tuple:
            raise _Refused("its pickle is damaged")
        if function == "collections OrderedDict":
            if arguments:
                raise _Refused("its pickle is of a kind that no hypernetwork has")
            return {}
        if function == "torch._utils _rebuild_tensor_v2":
            self._check_tensor(*arguments)
        return None

    def _check_tensor(self, storage, offset, sizes, strides, *_):
        numbers = [offset, *sizes[:9], *strides[:9]]
        if len(sizes) > 8 or type(storage) is not _Storage or not all(type(n) is int and n >= 0 for n in numbers):
            raise _Refused("a tensor has no sizes")
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if math.prod(sizes) > storage.elements or 0 not in sizes and last >= storage.elements:
            raise _Refused("a tensor is larger than its data")
        self.used += math.prod(sizes) * storage.dtype.itemsize
