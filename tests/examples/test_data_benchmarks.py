"""The benchmarks of large folders and of several processes, on a few images."""

import hashlib

import numpy as np
from PIL import Image

from examples.benchmarks import encoding, scale
from tests.helpers.forked_python import forked_python


def test_images_differ_in_bytes_and_captions_but_hardly_in_pixels(tmp_path):
    count = scale.DRAWN * scale.OTHER_SIZES + 5
    scale.write_images(tmp_path / "images", count)
    files = sorted((tmp_path / "images").glob("*.png"))
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in files}) == len(files) == count
    assert len({path.with_suffix(".txt").read_text() for path in files}) == count
    again, first = (np.asarray(Image.open(files[index])) for index in (scale.DRAWN * scale.OTHER_SIZES, 0))
    assert np.array_equal(again, first) and first.shape == (scale.SIDE, scale.SIDE, 3)


def test_scale_measures_a_run_and_compares_several(tmp_path, monkeypatch):
    folders, counts = [tmp_path / "few", tmp_path / "many"], [20, 60]
    for folder, count in zip(folders, counts):
        scale.write_images(folder, count)
    with forked_python():
        found = scale.run(folders[1], tmp_path / "cache 60", tmp_path / "run")
    assert found["lines of sizes"] == 4 and min(found.values()) > 0
    monkeypatch.setattr(
        scale, "run", lambda folder, *_: found if folder == folders[0] else {**found, "first step": 7.0}
    )
    figures = scale.compare_runs(folders, counts, tmp_path)
    for start in ("cold", "warm"):
        assert figures[f"to the first step, {start}, ratio"] == 7 / found["first step"]
    monkeypatch.setattr(scale, "STEPS", 21)
    assert scale.step_ratio(folders, counts, tmp_path) > 0


def test_two_processes_encode_each_image_once(tmp_path):
    encoding.draw_images(tmp_path / "images", 6, 64)
    with forked_python():
        apart, shared = (encoding.run_two(tmp_path / "images", tmp_path / name, name == "b") for name in "ab")
    for kind in ("images", "prompts"):
        assert [each[kind] for each in apart] == [6, 6] and sum(each[kind] for each in shared) == 6
