"""The cache on disk, whole and damaged."""

import random
import time

import datasets
import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter

from hypernet.data.arrow_cache import FLOATS, RowCache, check_cache_folder
from hypernet.data.processes import ALONE
from hypernet.utils.errors import OtherProcessError, UserError
from tests.helpers.processes import run_processes

FEATURES = {"numbers": FLOATS, "more": FLOATS, "name": datasets.Value("string"), "big": datasets.Value("bool")}


def row_of(key):
    """Return the row of "key N"."""
    number = int(key.split()[1])
    more = None if number % 2 else np.arange(5, dtype=np.float32) + number
    return {"key": key, "numbers": [number / 3.0] * 20, "more": more, "name": f"row {number}", "big": number > 5}


def fill(folder, keys, processes=ALONE, fail=lambda key: None, **options):
    """Open the cache and fill it; return it with the keys that were computed. `fail` may raise an error first."""
    computed = []

    def compute(items):
        for key, _ in items:
            fail(key)
            computed.append(key)
            yield row_of(key)

    cache = RowCache(folder, FEATURES, processes)
    cache.fill(dict.fromkeys(keys), compute, "Writing", "rows", **options)
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


# --- Several processes


def in_tens(items):
    return [items[start : start + 10] for start in range(0, len(items), 10)]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_compute_each_row_once_in_whole_batches(tmp_path, count):
    keys = [f"key {i}" for i in range(73)]
    fill(tmp_path, keys[::10])
    found = run_processes(count, lambda processes: fill(tmp_path, keys, processes, batches=in_tens))
    missing = [key for key in keys if key not in keys[::10]]
    assert sorted(key for _, computed in found for key in computed) == sorted(missing)
    for index, (cache, computed) in enumerate(found):
        assert in_tens(computed) == in_tens(missing)[index::count]
        check_rows(cache, keys)
    again = run_processes(count, lambda processes: fill(tmp_path, keys, processes))
    assert [computed for _, computed in again] == [[]] * count
    check_rows(fill(tmp_path, keys)[0], keys)


def test_processes_with_caches_of_their_own_share_nothing(tmp_path):
    folders = [tmp_path / name / "rows" for name in ("one", "one", "two")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    found = run_processes(3, lambda processes: fill(folders[processes.index], KEYS, processes))
    assert [len(computed) for _, computed in found] == [20, 20, 40]
    for cache, _ in found:
        check_rows(cache, KEYS)


def test_processes_that_need_different_rows_get_theirs(tmp_path):
    wanted = [KEYS[:30], KEYS[10:]]
    found = run_processes(2, lambda processes: fill(tmp_path, wanted[processes.index], processes))
    for (cache, _), keys in zip(found, wanted):
        check_rows(cache, keys)


@pytest.mark.parametrize("dies", [False, True])
def test_rows_computed_before_a_process_fails_are_kept(tmp_path, dies):
    def work(processes):
        def fail(key):
            time.sleep(0.02)
            if key == "key 21":  # of the second process
                if dies:
                    processes.die()
                raise UserError("it fails")

        return fill(tmp_path, KEYS, processes, fail)

    first, second = run_processes(2, work)
    assert type(first) is type(second) is (OtherProcessError if dies else UserError)
    kept = RowCache(tmp_path, FEATURES)
    rest = [key for key, row in zip(KEYS, kept.positions(KEYS)) if row < 0]
    assert "key 21" in rest and 10 <= len(rest) < 30
    assert fill(tmp_path, KEYS)[1] == rest and not list(tmp_path.rglob(".*"))


def test_processes_verify_a_part_each_and_agree_on_damaged_rows(tmp_path, capsys):
    fill(tmp_path, KEYS)
    (file,) = tmp_path.glob("*.arrow")
    data = bytearray(file.read_bytes())
    for number in (3, 37):  # in the parts of different processes
        data[data.index(np.float32(number / 3).tobytes() * 20)] ^= 1
    file.write_bytes(data)
    found = run_processes(2, lambda processes: fill(tmp_path, KEYS, processes))
    assert sorted(key for _, computed in found for key in computed) == ["key 3", "key 37"]
    for cache, _ in found:
        check_rows(cache, KEYS)
    assert len(capsys.readouterr().out.splitlines()) == 1
