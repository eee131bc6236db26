"""Ways to damage bytes, JSON, text and pickles, and to put something else in a file's place."""

import copy
import io
import json
import os
import pickle
import random
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ESCAPE = "\x1b[31m\x1b]0;owned\x07\r\n"  # colors a terminal, sets its title, and moves to the next line
LONG = "a" * 300_000
VALUES: list[Any] = [None, True, 0, -1, 1.5, 1e300, 10**30, 2**63, "", "x", ESCAPE, LONG, [], [1], [None], ["x"] * 7]
VALUES += [{}, {"a": {"b": []}}, [[[[[]]]]], [0] * 100_000, float("nan"), float("inf"), "../../x", "\ud800"]


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *arguments: Any):
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self.function, self.arguments


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, repeat, insert or overwrite, as bad disks, broken downloads and editors do."""
    if not content:
        return rng.randbytes(rng.randrange(64))
    start, end = sorted((rng.randrange(len(content)), rng.randrange(len(content) + 1)))
    way = rng.randrange(8)
    if way == 0:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 8, 200))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    head = bytearray(content)  # flips where headers, shapes and directories are
    for _ in range(3):
        place = rng.randrange(min(400, len(head)))
        head[rng.choice((place, len(head) - 1 - place))] = rng.randrange(256)
    others = [content[:start], content[:start] + bytes(end - start) + content[end:], content[:start] + content[end:]]
    others += [content[:start] + rng.randbytes(40) + content[start:], content * 2, bytes(head), rng.randbytes(500)]
    return others[way - 1]


def damage_value(rng: random.Random, value: Any) -> Any:
    """Return a copy of JSON-like data with one entry replaced, removed, added or renamed."""
    value = copy.deepcopy(value)
    place = value
    while isinstance(place, (dict, list)) and place:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = rng.choice(keys)
        if not isinstance(place[key], (dict, list)) or not place[key] or rng.random() < 0.4:
            way = rng.randrange(8)
            if way == 0:
                del place[key]
            elif way == 1 and isinstance(place, dict):
                place[rng.choice(["x", ESCAPE, LONG, "_class_name", ""])] = place[key]
            else:
                place[key] = rng.choice(VALUES)
            return value
        place = place[key]
    return rng.choice(VALUES)


def damage_json(rng: random.Random, content: bytes) -> bytes:
    """Damage JSON, mostly its values, sometimes its syntax."""
    if rng.random() < 0.2:
        texts = [
            b"",
            b"null",
            b"[]",
            b"7",
            b'"x"',
            b"[" * 100_000,
            b'{"a":' * 100_000,
            b"9" * 100_000,
            b"\xff\xfe{\x00",
        ]
        return rng.choice([*texts, damage_bytes(rng, content)])
    try:
        value = json.loads(content)
    except ValueError:
        return damage_bytes(rng, content)
    for _ in range(rng.choice((1, 1, 3))):
        value = damage_value(rng, value)
    return json.dumps(value).encode()


def damage_text(rng: random.Random, text: str) -> bytes:
    """Damage a text: encodings, control characters, brackets, endless lines."""
    whole = [ESCAPE, LONG, "(" * 200_000, "[a:" * 70_000, "<a:" * 70_000, " " * 300_000 + "BREAK", "\\(" * 100_000]
    whole += ["((a:1.1)" * 40_000, "a, " * 100_000, "\n" * 300_000, "[" * 200_000, 'a: \\",' * 50_000, "\u202e\u200d"]
    way = rng.randrange(5)
    if way == 0:
        return rng.choice(whole).encode()
    if way == 1:
        return text.encode(rng.choice(["utf-16", "utf-32", "utf-16-be", "utf-8-sig", "cp037"]))
    if way == 2:
        place = rng.randrange(len(text) + 1)
        return (text[:place] + rng.choice([ESCAPE, "\0", "\x85", *whole[2:7]]) + text[place:]).encode()
    return damage_bytes(rng, text.encode())


def save(data: Any, zipped: bool) -> bytes:
    """Return what `torch.save` writes."""
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def hostile_pickle(rng: random.Random, data: Any, marker: Path) -> bytes:
    """Return a file of `torch.save` with content that runs code, never ends, or is of the wrong kind."""
    zipped = rng.random() < 0.5
    way = rng.randrange(8)
    if way == 0:
        danger = rng.choice([Call(os.system, f"touch {marker}"), Call(open, str(marker), "w"), Call(bytearray, 10**12)])
        damaged = rng.choice([danger, {**data, "name": danger}, {"state_dict": danger}, {"state_dict": {"a": danger}}])
        return save(damaged, zipped)
    if way == 1:
        return with_pickle(rng.choice(_bombs()), zipped)
    if way == 2:
        cycle: dict[str, Any] = {}
        cycle["state_dict"] = rng.choice([cycle, {"state_dict": cycle}, [cycle]])
        return save({**data, **cycle}, zipped)
    if way == 3:
        keys = list(data)
        return save(
            {**data, rng.choice(keys): rng.choice([*VALUES, torch.zeros(2), b"x", (1,), {1}, torch.float16])}, zipped
        )
    if way == 4:
        return save(damage_value(rng, rng.choice(VALUES)), zipped)
    return damage_bytes(rng, save(data, zipped))


def with_pickle(pickled: bytes, zipped: bool) -> bytes:
    """Return a file of `torch.save` around a pickle."""
    if not zipped:
        magic = save({}, False)[:15]
        return magic + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + pickled + pickle.dumps([], 2)
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def _bombs() -> list[bytes]:
    """Return pickles that take forever or all memory, or that readers do not expect."""
    name = b"a" * 200_000
    twice = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    key = b"X\x0a\x00\x00\x00state_dict"
    return [
        b"\x80\x02c" + name + b"\nx\n.",
        b"\x80\x02cos\n" + name + b"\n.",
        b"\x80\x02}" + b")q\x00" + twice + b"K\x01s.",
        b"\x80\x02}q\x00" + key + b"h\x00s.",
        b"\x80\x02" + b"]" * 90_000 + b"a" * 89_999 + b".",
        b"\x80\x02" + (b"}" + key) * 20_000 + b"}" + b"s" * 20_000 + b".",
        b"\x80\x02" + b"]0" * 10**6 + b"].",
        b"\x80\x02X\xff\xff\xff\x7fabc.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02\x8b\xff\xff\xff\x7f1.",
    ]


def replace_file(rng: random.Random, path: Path) -> None:
    """Replace a file with something that is not a regular file, or is endless."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    way = rng.randrange(6)
    if way == 0:
        os.mkfifo(path)
    elif way == 1:
        path.mkdir(exist_ok=True)
    elif way == 2:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/urandom", "/dev/tty", "/proc/self/mem"]))
    elif way == 3:
        path.symlink_to(path.name)
    elif way == 4 and len(str(path)) < 100:
        socket.socket(socket.AF_UNIX).bind(str(path))
    else:
        path.touch()


def damage_file(rng: random.Random, path: Path, damage: Callable[[random.Random, bytes], bytes]) -> None:
    """Damage a file, or put something else in its place."""
    if rng.random() < 0.1:
        replace_file(rng, path)
        return
    content = damage(rng, path.read_bytes())
    path.unlink()  # it may be a link to the sample
    path.write_bytes(content)


def damage_header(rng: random.Random, content: bytes) -> bytes:
    """Damage the header of a .safetensors, or the config in it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    if "hypernetwork" in metadata and rng.random() < 0.5:
        metadata["hypernetwork"] = damage_json(rng, metadata["hypernetwork"].encode()).decode(errors="replace")
    else:
        header = damage_value(rng, header)
    text = rng.choice([json.dumps(header).encode(), damage_json(rng, content[8 : 8 + length])])
    length = rng.choice([len(text), len(text), len(text), 0, 2**40, 2**63])
    return length.to_bytes(8, "little") + text + content[8 + int.from_bytes(content[:8], "little") :]
