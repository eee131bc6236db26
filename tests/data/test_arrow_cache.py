"""The cache on disk, whole and damaged."""

import random

import datasets

from hypernet.data.arrow_cache import RowCache


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
