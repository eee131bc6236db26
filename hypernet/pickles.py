"""Read a pickled file as plain data: nothing in it is run, and nothing is made that the file is too small to hold.

The pickle is looked at three times. First its opcodes: only those that `torch.save` writes for dicts, lists and tensors.
Then an outline is made of it, in which every tensor is a record of its sizes, and these are held against the file. Only
what has passed goes to `torch.load(weights_only=True)`.
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

from hypernet.errors import UserError
from hypernet.hashes import file_sha256
from hypernet.recognise import kind_of

ZIP = b"PK\x03\x04"
MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the first pickle of torch.save's legacy format
MOST_OPCODES = 1_000_000  # of a pickle; a hypernetwork has some thousand
TRAILER = b"\nhypernet sha256 "  # after a legacy file's last storage, where no reader looks; then 64 hex digits
DTYPES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
OPCODES = set(
    "PROTO STOP MARK EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SETITEM SETITEMS APPEND APPENDS "
    "BINPUT LONG_BINPUT BINGET LONG_BINGET BININT BININT1 BININT2 LONG1 BINFLOAT NONE NEWTRUE NEWFALSE BINUNICODE "
    "GLOBAL REDUCE BUILD BINPERSID".split()
)
TUPLES = ("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3")
UNREADABLE = (pickle.UnpicklingError, zipfile.BadZipFile, RuntimeError, EOFError, LookupError, TypeError, ValueError)
UNREADABLE += (AttributeError, AssertionError, NotImplementedError, OverflowError, MemoryError, RecursionError)


class NotAHypernetwork(UserError):
    """The file cannot be read as a hypernetwork. The message is one line: the file and what is wrong with it."""


class _Refused(ValueError):
    """Why a pickle is not read any further."""


def read_plain(path, expect: Callable[[object], None] = lambda outline: None) -> object:
    """The dicts, lists, numbers, strings and tensors that `torch.save` has put into a file, tensors on the CPU.

    Args:
        expect: called with what is in the file, None in place of each tensor, before any is loaded; may raise.

    Raises:
        NotAHypernetwork: for a file that is something else (a LoRA, a checkpoint, …), holds anything besides, or is
            damaged; in one line.
    """
    path = Path(path)
    strings = []
    try:
        with open(path, "rb") as file:
            expect(_check(file, strings))
            _check_sums(file)
            data = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise NotAHypernetwork(f"{path}: it cannot be read ({error.strerror or error})") from None
    except NotAHypernetwork:
        raise
    except UNREADABLE as error:
        kind = kind_of(strings)
        if kind:
            raise NotAHypernetwork(f"{path}: it is no hypernetwork but {kind}") from None
        reason = str(error) if isinstance(error, _Refused) else "its parts do not fit together"
        problem = f"it is no hypernetwork file, or a damaged one ({reason}; nothing of it was run)"
        raise NotAHypernetwork(f"{path}: {problem}") from None
    return data


def append_trailer(path):
    """Add the sha256 of a legacy file to its end, so that every later change of it is noticed."""
    trailer = TRAILER + file_sha256(path).encode()
    with open(path, "ab") as file:
        file.write(trailer)


def _check(file, strings):
    """Hold the file's pickles, and the sizes that they declare, against the file; the outline of what is in it."""
    if file.read(1) == b"":
        raise _Refused("it is empty")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if content[: len(ZIP)] == ZIP:
            return _check_zip(file, strings)
        if content[: len(MAGIC)] == MAGIC:
            return _check_legacy(content, strings)
        strings.append(content[:20].decode("latin-1"))  # a file of another kind may be known by its head
        raise _Refused("it does not begin as one")


def _check_sums(file):
    """The checksums of a zip (those of a legacy file are no work to find). Leaves the file at its start."""
    file.seek(0)
    if file.read(len(ZIP)) == ZIP:
        with zipfile.ZipFile(file) as archive:
            if archive.testzip() is not None:
                raise _Refused("its checksum is wrong")
    file.seek(0)


def _check_zip(file, strings):
    """A zip: stored, not compressed, no larger than the file; one pickle, a record of the right size for each storage."""
    with zipfile.ZipFile(file) as archive:
        records = {info.filename: info.file_size for info in archive.infolist()}
        if any(info.compress_type != zipfile.ZIP_STORED for info in archive.infolist()):
            raise _Refused("it is compressed")
        if sum(records.values()) > os.fstat(file.fileno()).st_size or len(records) < len(archive.infolist()):
            raise _Refused("it declares more than it holds")
        names = [name for name in records if name.endswith("data.pkl")]
        if len(names) != 1:
            raise _Refused("there is no data in it")
        outline = _outline(io.BytesIO(archive.read(names[0])), strings)
        for key, storage in outline.storages.items():
            if records.get(names[0].replace("data.pkl", f"data/{key}")) != storage.bytes:
                raise _Refused("its tensors are not all there")
        return outline.content


def _check_legacy(content, strings):
    """Five pickles (magic number, version, machine, data, the storages' keys), the storages, and perhaps the trailer."""
    content.seek(len(MAGIC))
    _, _, outline, _ = [_outline(content, strings) for _ in range(4)]
    end = content.tell() + sum(8 + storage.bytes for storage in outline.storages.values())
    if end > len(content):
        raise _Refused("it ends too early")
    with memoryview(content) as view, view[:end] as covered, view[end:] as rest:
        if rest and rest != TRAILER + hashlib.sha256(covered).hexdigest().encode():
            raise _Refused("its checksum is wrong")
    return outline.content


def _outline(pickled, strings):
    """What a pickle holds and the storages that it names, after a look at every opcode and every tensor's sizes."""
    start = pickled.tell()
    _scan(pickled, strings)
    end = pickled.tell()
    pickled.seek(start)
    outline = _Outline(io.BytesIO(pickled.read(end - start)))
    outline.content = outline.load()
    return outline


def _scan(pickled, strings):
    """Collect the pickle's strings; refuse it for an opcode or a name that no hypernetwork needs.

    A tuple that is taken up again is refused because nested ones, as the key of a dict, are hashed for ever; so is a
    memo with gaps, for which the unpickler would take memory up to the highest number.
    """
    before, tuples, memos = None, set(), 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        name = opcode.name
        if name in ("GLOBAL", "BINUNICODE"):
            strings.append(argument)
        if name not in OPCODES or count > MOST_OPCODES:
            raise _Refused("its pickle is of a kind that no hypernetwork has")
        if name in ("BINPUT", "LONG_BINPUT"):
            if argument > memos:
                raise _Refused("its pickle is of a kind that no hypernetwork has")
            memos = max(memos, argument + 1)
            if before in TUPLES:
                tuples.add(argument)
        if name in ("BINGET", "LONG_BINGET") and argument in tuples:
            raise _Refused("its pickle is of a kind that no hypernetwork has")
        before = name


@dataclasses.dataclass
class _Storage:
    dtype: torch.dtype
    elements: int

    @property
    def bytes(self):
        return self.elements * self.dtype.itemsize


class _Dict(dict):
    """In place of an OrderedDict, whose attributes (a state dict's `_metadata`) are of no use here."""

    def __setstate__(self, state):
        pass


def _check_tensor(storage, offset, sizes, strides, *_):
    """In place of a tensor: refuse one that reaches beyond its storage, or is larger than it."""
    numbers = [offset, *sizes[:9], *strides[:9]]
    if len(sizes) > 8 or not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers):
        raise _Refused("a tensor has no sizes")
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if math.prod(sizes) > storage.elements or 0 not in sizes and last >= storage.elements:
        raise _Refused("a tensor is larger than its data")


class _Outline(pickle.Unpickler):
    """Unpickles without torch: tensors are checked and left out. It knows no callable but the three harmless ones."""

    CALLABLES = {
        ("collections", "OrderedDict"): _Dict,
        ("torch._utils", "_rebuild_tensor_v2"): _check_tensor,
        ("torch._utils", "_rebuild_parameter"): lambda *_: None,
    }

    def __init__(self, file):
        super().__init__(file)
        self.storages = {}

    def find_class(self, module, name):
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) not in self.CALLABLES:
            raise _Refused(f"it names {module}.{name}, which no hypernetwork needs")
        return self.CALLABLES[module, name]

    def persistent_load(self, saved_id):
        kind, dtype, key, _, elements, *_ = saved_id
        numbers = type(elements) is int and elements >= 0
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not numbers or not isinstance(key, str):
            raise _Refused("a tensor has no data")
        return self.storages.setdefault(key, _Storage(dtype, elements))
