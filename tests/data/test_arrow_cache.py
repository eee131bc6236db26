"""The cache on disk, whole and damaged."""

import random

import datasets
import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter

from hypernet.data.arrow_cache import FLOATS, RowCache, check_cache_folder

FEATURES = {"numbers": FLOATS, "more": FLOATS, "name": datasets.Value("string"), "big": datasets.Value("bool")}


def row_of(key):
    """Return the row of "key N"."""
    number = int(key.split()[1])
    more = None if number % 2 else np.arange(5, dtype=np.float32) + number
    return {"key": key, "numbers": [number / 3.0] * 20, "more": more, "name": f"row {number}", "big": number > 5}


def fill(folder, keys):
    """Open the cache and fill it; return it with the keys that were computed."""
    computed = []

    def compute(items):
        computed.extend(key for key, _ in items)
        return map(row_of, computed)

    cache = RowCache(folder, FEATURES)
    cache.fill(dict.fromkeys(keys), compute, "Writing", "rows")
    return cache, computed


def check_rows(cache, keys):
    """Check the rows of these keys in the cache."""
    positions = cache.positions(keys)
    assert (positions >= 0).all()
    for position, key in zip(positions, keys):
        expected = row_of(key)
        assert np.array_equal(cache.read(position, "numbers"), np.asarray(expected["numbers"], np.float32))
        more = cache.read(position, "more")
        assert (more is None) == (expected["more"] is None) and (more is None or np.array_equal(more, expected["more"]))
        names = cache.rows(np.array([position]), ["name", "big"])
        assert names == [{"name": expected["name"], "big": expected["big"]}]


def test_damaged_files_are_ignored(tmp_path):
    features = {"numbers": datasets.List(datasets.Value("float32"))}
    RowCache(tmp_path, features).fill(
        {f"key {i}": i for i in range(50)},
        lambda items: ({"key": key, "numbers": [float(i)] * 20} for key, i in items),
        "Writing",
        "rows",
    )
    (file,) = tmp_path.glob("*.arrow")
    whole, rng = file.read_bytes(), random.Random(0)
    assert RowCache(tmp_path, features).positions(["key 7", "none"]).tolist() == [7, -1]
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        RowCache(tmp_path, features).positions([f"key {i}" for i in range(50)])


KEYS = [f"key {i}" for i in range(40)]  # in two record batches


FLIPS = {  # of a value in the file: its bytes, and the bit to flip
    "a low bit of a number": (np.float32(7 / 3).tobytes() * 20, 3),
    "a high bit of a number": (np.float32(7 / 3).tobytes() * 20, 30),
    "another column": ((np.arange(5, dtype=np.float32) + 36).tobytes(), 17),
    "a text": (b"row 7row 8", 8 * 4),  # it becomes "row 6"
    "a key": (b"key 7key 8", 8 * 4),
}


@pytest.mark.parametrize("kind", FLIPS)
def test_a_flipped_bit_invalidates_one_row(tmp_path, capsys, kind):
    (value, bit), _ = FLIPS[kind], fill(tmp_path, KEYS)
    (file,) = tmp_path.glob("*.arrow")
    data = bytearray(file.read_bytes())
    assert data.count(value) == 1
    data[data.index(value) + bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    cache, computed = fill(tmp_path, KEYS)
    assert computed in (["key 7"], ["key 36"])
    check_rows(cache, KEYS)
    said = capsys.readouterr().out.splitlines()
    assert len(said) <= 1 and all(line.startswith("1 ") and str(tmp_path) in line for line in said)
    cache, computed = fill(tmp_path, KEYS)  # the damaged row is still there, but not used
    assert computed == [] and capsys.readouterr().out == ""
    check_rows(cache, KEYS)
    assert fill(tmp_path, ["key 3", "key 50"])[1] == ["key 50"]


def test_random_damage_is_never_read(tmp_path):
    fill(tmp_path, KEYS)
    (file,) = tmp_path.glob("*.arrow")
    whole, rng = file.read_bytes(), random.Random(1)
    for _ in range(12):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        cache, _ = fill(tmp_path, KEYS)
        check_rows(cache, KEYS)
        for path in tmp_path.glob("*.arrow"):
            path.unlink()


def test_caches_of_earlier_versions_stay_valid(tmp_path):
    """Their rows have no checksums."""
    features = datasets.Features({"key": datasets.Value("string"), **FEATURES})
    with ArrowWriter(path=str(tmp_path / "before.arrow"), features=features, writer_batch_size=32) as writer:
        for key in KEYS[:20]:
            writer.write(row_of(key))
        writer.finalize()
    cache, computed = fill(tmp_path, KEYS)
    assert computed == KEYS[20:]
    check_rows(cache, KEYS)
    assert fill(tmp_path, KEYS)[1] == []


def test_a_new_run_removes_files_of_a_killed_one(tmp_path):
    fill(tmp_path / "latents", KEYS[:2])
    (file,) = (tmp_path / "latents").glob("*.arrow")
    left = file.with_name(f".{file.name}.tmp")
    left.write_bytes(b"cut short")
    check_cache_folder(str(tmp_path))
    assert [path.name for path in (tmp_path / "latents").iterdir()] == [file.name]
