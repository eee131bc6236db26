"""Damaged and malicious files: each is refused in one line, without running code or filling the memory."""

import io
import os
import pickle
import pickletools
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch

import hypernet
from hypernet import Hypernetwork, NotAHypernetwork
from hypernet.formats.safe_pickle import TRAILER, read_plain
from hypernet.formats.webui import FIELDS, read_webui
from hypernet.utils.pickle_scanner import MAGIC
from tests.helpers.scripts import REPO, run

LEGACY, ZIP = False, True


class Call:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The bytes of a file of ours, and its content."""
    path = tmp_path_factory.mktemp("good") / "style.pt"
    torch.manual_seed(0)
    hypernet.save(Hypernetwork((10, 12), (1, 2, 2, 1), "relu", dropout_structure=(0, 0.3, 0.3, 0), step=7), path)
    return path.read_bytes(), read_webui(path)


def saved(data, zipped=LEGACY):
    file = io.BytesIO()
    torch.save(data, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


def flipped(content, count, seed=0):
    rng = random.Random(seed)
    for _ in range(count):
        place, bit = rng.randrange(len(content)), 1 << rng.randrange(8)
        yield f"bit {bit} of byte {place}", content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def cut(content, count, seed=0):
    whole = len(content) - len(TRAILER) - 64  # cut exactly before the checksum, it is a file as the WebUI writes it
    for place in random.Random(seed).sample([n for n in range(len(content)) if n != whole], count):
        yield f"cut at {place}", content[:place]
    yield "zeros at the end", content[: len(content) // 2] + bytes(len(content) - len(content) // 2)
    yield "something at the end", content + b"x"


def wrong_types(data):
    cycle = []
    cycle.append(cycle)
    values = {"a word": "x", "a number": 1.5, "minus one": -1, "10^30": 10**30, "a list": ["1"], "a dict": {}}
    values |= {"a tensor": torch.zeros(2), "tensors": [torch.zeros(2)], "bytes": b"bytes", "a cycle": cycle}
    values |= {"nan": float("nan")}
    free = (
        "name",
        "weight_initialization",
        "sd_checkpoint",
        "sd_checkpoint_name",
        "optional_info",
    )  # any text is valid
    for name, value in values.items():
        for field in FIELDS:
            if not (name == "a word" and field in free):
                yield f"{field} is {name}", {**data, field: value}
        yield f"a pair is {name}", {**data, 10: value}
        yield f"a module is {name}", {**data, 10: (data[10][0], value)}
        yield f"a weight is {name}", {**data, 10: (data[10][0], {**data[10][1], "linear.0.weight": value})}
    for key in (0, -10, 11, 10**12):
        yield f"a width of {key}", {**data, key: data[10]}


def wrong_shapes(data):
    for width in (10, 12):
        for part in (0, 1):
            for name, tensor in data[width][part].items():
                changes = (tensor[:-1], tensor[None], tensor.flatten()[:1], tensor.long(), tensor.to(torch.complex64))
                for change in changes:
                    module = OrderedDict(data[width][part]) | {name: change}
                    pair = tuple(module if i == part else data[width][i] for i in (0, 1))
                    yield f"{width}.{part}.{name} {change.dtype} {list(change.shape)}", {**data, width: pair}
                module = OrderedDict((n, t) for n, t in data[width][part].items() if n != name)
                yield f"{name} is missing", {**data, width: (module, data[width][1])}


def huge(data):
    """Sizes that fit into no memory: declared, or expanded from a few bytes."""
    wide = torch.zeros(1).expand(10**6, 10**6)
    yield "a layer of 10^12", {**data, "layer_structure": [1, 1e12, 2, 1]}
    yield "a layer of 10^300", {**data, "layer_structure": [1, 1e300, 2, 1]}
    yield "an infinite layer", {**data, "layer_structure": [1, float("inf"), 2, 1]}
    yield "a layer of nan", {**data, "layer_structure": [1, float("nan"), 2, 1]}
    yield "a million layers", {**data, "layer_structure": [1] * 10**6}
    yield "a width of 10^12", {**{k: v for k, v in data.items() if k != 10}, 10**12: data[10]}
    yield (
        "stretched weights",
        {10**6: ({"linear.0.weight": wide, "linear.0.bias": wide[0]},) * 2, "layer_structure": [1, 1]},
    )


def huge_storages():
    """Storages that declare another number of elements than they have, in both formats."""
    content, archive = saved({10: torch.zeros(70001)}), saved({10: torch.zeros(70001)}, ZIP)
    declared = b"J" + struct.pack("<i", 70001)
    for elements in (70000, 70002, 10**9, 10**12, 2**62, -1):
        number = pickle.encode_long(elements)
        other = b"\x8a" + bytes([len(number)]) + number
        assert content.count(declared) >= 2 and archive.count(declared) >= 2  # of the storage, and of the tensor
        for times in (1, 2):
            yield content.replace(declared, other, times)
            with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file := io.BytesIO(), "w") as new:
                for name in old.namelist():
                    record = old.read(name)
                    new.writestr(name, record.replace(declared, other, times) if name.endswith(".pkl") else record)
            yield file.getvalue()


def legacy(pickled):
    return MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + pickled + pickle.dumps([], 2)


def empty_memory(data):
    """Storages without data, for which torch would return uninitialized memory; attributes that hide dict methods."""
    content = saved(data)
    file, starts = io.BytesIO(content), []
    for _ in range(5):
        starts.append(file.tell())
        list(pickletools.genops(file))
    keys = pickle.loads(content[starts[4] : file.tell()])
    for other in ([], keys[:-1], keys + keys[:1], None, 5):
        yield content[: starts[4]] + pickle.dumps(other, 2) + content[file.tell() :]
    yield content[: file.tell()] + bytes(8) + content[file.tell() + 8 :]  # a storage of no elements
    archive = saved({10: torch.zeros(300), "layer_structure": [1, 1]}, ZIP)
    for key in (b"", b"x/", b"../0"):
        with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file := io.BytesIO(), "w") as new:
            for name in old.namelist():
                word = b"X" + len(key).to_bytes(4, "little") + key
                other = name.replace("data/0", f"data/{key.decode()}")
                new.writestr(other, old.read(name).replace(b"X\x01\x00\x00\x000", word))
        yield file.getvalue()
    for place in ("outer", "inner"):
        hidden = OrderedDict(data[10][0] if place == "inner" else data)
        hidden.__dict__["values"] = hidden.__dict__["get"] = 3
        for form in (LEGACY, ZIP):
            yield saved({**data, 10: (hidden, data[10][1])} if place == "inner" else hidden, form)


def bombs():
    """Pickles that take forever, all memory, or the whole process, without a call."""
    twice = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    hidden = b"".join(b"h%ch%c\x86(eq%c" % (i, i, i + 1) for i in range(60))  # nothing is appended in between
    yield legacy(b"\x80\x02}" + b")q\x00" + twice + b"K\x01s.")  # a key of 2^60 tuples to hash
    yield legacy(b"\x80\x02}" + b")q\x00" + hidden + b"K\x01s.")
    yield legacy(b"\x80\x02})" + b"\x85" * 150_000 + b"Ns.")  # a key of tuples within tuples
    yield legacy(b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.")
    keys = b"".join(b"\x8a\x0f" + (k * (2**61 - 1)).to_bytes(15, "little") + b"Ns" for k in range(60_000))
    yield legacy(b"\x80\x02}" + keys + b".")  # keys of one hash
    yield legacy(b"\x80\x02}r\xff\xff\xff\x7f.")  # a memo of 2^31 entries
    yield legacy(b"\x80\x02" + b"]" * 90_000 + b"a" * (90_000 - 1) + b".")  # lists within lists
    yield legacy(b"\x80\x02X\xff\xff\xff\x7fabc.")  # a string of 2^31 letters
    yield legacy(b"\x80\x02" + b"]0" * 3 * 10**6 + b"].")
    with zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + b"N0" * 10**7 + b"N.")  # 20 MB out of 20 kB
    yield file.getvalue()
    weight = torch.zeros(1000, 1000)  # 4 MB, which each module declares a copy of
    module = {
        name: weight if name.endswith("weight") else weight[0]
        for i in range(500)
        for name in (f"linear.{i}.weight", f"linear.{i}.bias")
    }
    for form in (LEGACY, ZIP):
        yield saved({1000: (module, module), "layer_structure": [1] * 501}, form)
    yield two_directories(weight)


def two_directories(weight):
    """A zip with a second directory, which other readers use, with a record that is compressed a thousand times."""
    huge = saved({1000: ({"linear.0.weight": weight, "linear.0.bias": weight[0]},) * 2, "layer_structure": [1, 1]}, ZIP)
    with (
        zipfile.ZipFile(io.BytesIO(huge)) as old,
        zipfile.ZipFile(file := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
    hidden, shown = file.getvalue(), saved({10: (1, 2)}, ZIP)
    return hidden + shown


def calls(data, marker):
    """Pickled calls in every place of the file, in both formats."""
    dangers = [
        Call(os.system, f"touch {marker}"),
        Call(exec, f"open({str(marker)!r}, 'w')"),
        Call(eval, f"open({str(marker)!r}, 'w')"),
        Call(open, str(marker), "w"),
        Call(torch.load, str(marker)),
        Call(getattr, Call(__import__, "os"), "system"),
        Call(torch.zeros, 10**12),
        Call(bytearray, 10**12),
        Call(range, 10**12),
    ]
    for danger in dangers:
        for form in (LEGACY, ZIP):
            yield saved(danger, form)
            yield saved({**data, "name": danger}, form)
            yield saved({**data, 10: danger}, form)
            yield saved({**data, 10: (data[10][0], {**data[10][1], "linear.0.bias": danger})}, form)
        yield pickle.dumps(danger)
        yield MAGIC + pickle.dumps(danger, 2) * 4


READER = """
import resource, sys
import hypernet, hypernet.formats.load_save, hypernet.formats.webui
from hypernet import NotAHypernetwork
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024  # MiB on Linux
before = peak()
for path in sys.argv[1:]:
    try:
        hypernet.load(path)
        print("accepted", path)
    except NotAHypernetwork as error:
        line = str(error)
        assert line.startswith(path + ": ") and chr(10) not in line and len(line) < len(path) + 400, line
        print("refused", path)
    assert peak() - before < 300, f"{path} took {peak() - before} MiB"
"""


def test_refuses_every_damaged_or_malicious_file(good, tmp_path):
    """In a process of its own, to measure its memory."""
    content, data = good
    marker, names = tmp_path / "code ran", {}
    mutations = [*flipped(content, 400), *cut(content, 100)]
    for name, value in (*wrong_types(data), *wrong_shapes(data), *huge(data)):
        mutations += [(name, saved(value)), (name, saved(value, ZIP))]
    mutations += [("a call", bad) for bad in calls(data, marker)]
    mutations += [("a storage", bad) for bad in huge_storages()]
    mutations += [("a bomb", bad) for bad in bombs()]
    mutations += [("empty memory", bad) for bad in empty_memory(data)]
    for i, (name, bad) in enumerate(mutations):
        names[f"{i}.pt"] = name
        (tmp_path / f"{i}.pt").write_bytes(bad)
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = run("-c", READER, *names, afresh=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    accepted = [names[line.split()[1]] for line in done.stdout.splitlines() if line.startswith("accepted")]
    assert not accepted and done.stdout.count("refused") == len(mutations) > 1200
    assert not marker.exists()


def test_flipped_bits_of_the_webuis_own_files_are_refused_or_change_nothing(good, tmp_path):
    """A zip has checksums too; what they do not cover (times, attributes) does not matter."""
    content, data = good
    path = tmp_path / "style.pt"
    path.write_bytes(saved(data, ZIP))
    expected, refused = hypernet.load(path), 0
    for name, bad in flipped(path.read_bytes(), 200):
        path.write_bytes(bad)
        try:
            opened = hypernet.load(path)
        except NotAHypernetwork:
            refused += 1
            continue
        assert opened.config == expected.config, name
        for ours, theirs in zip(opened.state_dict().values(), expected.state_dict().values()):
            assert torch.equal(ours, theirs), name
    assert refused > 100


def test_reads_an_optimizers_state_in_both_formats(tmp_path):
    parameter = torch.nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.square().sum().backward()
    optimizer.step()
    for form in (LEGACY, ZIP):
        torch.save(optimizer.state_dict(), tmp_path / "o.bin", _use_new_zipfile_serialization=form)
        read = read_plain(tmp_path / "o.bin")
        assert torch.equal(read["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])
        assert read["param_groups"] == optimizer.state_dict()["param_groups"]
