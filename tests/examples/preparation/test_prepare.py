"""Whole runs of examples/prepare.py: 200 files of all kinds, interrupted runs, captions as the trainer reads them."""

import collections
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from examples import prepare
from examples.quickstart.tools.odd_images import write_mixed_images
from hypernet.cli.script import run_script
from hypernet.data.image_io import on_background, read_image
from tests.helpers.preparation import (
    contents,
    hashes,
    hashes_without_record,
    labeled,
    read_captions,
    read_clean_captions,
    run_here,
    skipped,
    summary,
    write,
)
from tests.helpers.scripts import REPO


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder of 200 files of all kinds, and those that cannot be used."""
    folder = tmp_path_factory.mktemp("mixed") / "in"
    return folder, set(write_mixed_images(folder))


def test_prepares_200_files_of_all_kinds(mixed, tmp_path):
    source, broken = mixed
    before, out = hashes(source), tmp_path / "out"
    images = {name for name in before if not name.endswith(".txt")}
    flags = ("--size=48x64", "--split", "--flip", "--focus")
    assert len(images) == 200 and len(broken) == 15
    printed = run_here(source, out, *flags, "--sheet_images=4")
    assert hashes(source) == before

    entries = [json.loads(line) for line in (out / "prepare.jsonl").read_text().splitlines()]
    done = {entry["source"]: entry for entry in entries if "files" in entry}
    assert done.keys() == images - broken
    reasons = skipped(printed)
    assert reasons == {entry["source"]: entry["left_out"] for entry in entries if "left_out" in entry}
    by_kind = collections.defaultdict(set)
    for name in broken:
        by_kind[os.path.basename(name).rpartition(" ")[0]].add(reasons[name])
    by_kind["cut short"] |= by_kind.pop("truncated")  # the same problem in a JPEG and a PNG
    assert len(by_kind) == 4 and len(set().union(*by_kind.values())) == sum(map(len, by_kind.values()))

    files = [name for entry in done.values() for name in entry["files"]]
    assert len(files) == len({name.casefold() for name in files})  # no file belongs to two images
    assert contents(out).keys() == set(files)
    for name in files:
        if name.endswith(".png"):
            with Image.open(out / name) as image:
                assert image.format == "PNG" and image.mode == "RGB" and image.size == (48, 64), name
                image.load()
    expected, found = read_captions(source), read_clean_captions(out)
    for name, entry in done.items():
        assert {found[file] for file in entry["files"] if file.endswith(".png")} == {expected[name]}, name
    panorama = next(entry for entry in done.values() if entry["width"] == 12_000)
    assert len(panorama["boxes"]) == math.ceil((12_000 - 300 * 0.2) / (300 * 0.8))
    rotated = on_background(read_image((out / done["one/same again.jpg"]["files"][0]).read_bytes()), "white")
    assert np.asarray(rotated).shape == (64, 48, 3)
    assert summary(printed, out)[:3] == [sum(name.endswith(".png") for name in files), len(done), 200]
    assert Image.open(tmp_path / "out_sheet.png").size[0] > 300

    before = hashes_without_record(out)
    printed = run_here(source, out, *flags, "--sheet_images=0")
    assert hashes_without_record(out) == before
    assert summary(printed, out)[-1] == len(done) and skipped(printed) == reasons  # all were done before


def test_a_killed_run_resumes_to_the_same_result(mixed, tmp_path):
    source, _ = mixed
    out, flags = tmp_path / "out", ["--size=64", "--flip", "--split", "--sheet_images=2"]
    numbers = summary(run_here(source, tmp_path / "whole", *flags), tmp_path / "whole")
    script = [sys.executable, str(REPO / "examples" / "prepare.py"), str(source), str(out), *flags]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.rglob("*.png"))) < 60:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    half = {name: found for name, found in hashes_without_record(out).items() if "/." not in f"/{name}"}
    whole = contents(tmp_path / "whole")
    assert 60 <= len(half) < len(whole)
    with open(out / "prepare.jsonl", "a") as file:
        file.write('{"source": "half a li')
    resumed = summary(run_here(source, out, *flags), out)
    assert resumed[:-1] == numbers and resumed[-1] >= 1  # the last number is that of the images done before
    assert contents(out) == whole
    after = hashes(out)
    assert all(after[name] == found for name, found in half.items())  # not written again
    assert (tmp_path / "out_sheet.png").exists()


def test_an_interrupted_run_resumes_to_the_same_result(mixed, tmp_path, capsys):
    source, _ = mixed

    def interrupt():
        while len(list((tmp_path / "out").rglob("*.png"))) < 20:
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(SystemExit) as stop:
        run_script(lambda: prepare.main([str(source), str(tmp_path / "out"), "--size=64"]), "stopped; run it again")
    thread.join()
    assert stop.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped; run it again"
    assert not list((tmp_path / "out").rglob("*.tmp"))
    run_here(source, tmp_path / "out", "--size=64")
    run_here(source, tmp_path / "whole", "--size=64")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_the_trainer_reads_the_right_captions(tmp_path):
    images = {"0012-a cat.png": (99, 33), "a dog.png": (50, 50), "a dog.jpg": (51, 51), "sub/bird.png": (40, 40)}
    source = write(tmp_path / "in", {**images, "sub/said.png": (40, 40), "listed.png": (40, 40)})
    (source / "sub" / "bird.txt").write_text("a bird,\nin two lines")
    rows = [{"file_name": "listed.png", "text": ["first", "second"]}, {"file_name": "sub/said.png", "text": "told"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    printed = run_here(source, tmp_path / "out", "--size=32", "--split", "--flip")
    assert len(labeled(printed, "note")) == 2  # some images have no caption, and one has several
    found = read_clean_captions(tmp_path / "out")
    expected = {"a cat": 8, "a dog": 4, "a bird,\nin two lines": 2, "told": 2, "first": 2}
    assert collections.Counter(found.values()) == expected
    texts = {name for name in contents(tmp_path / "out") if name.endswith(".txt")}
    assert not (tmp_path / "out" / "a dog.txt").exists() and "0012-a cat-2-flipped.txt" in texts
    (tmp_path / "out" / "sub" / "said-flipped.txt").unlink()
    run_here(source, tmp_path / "out", "--size=32", "--split", "--flip")
    assert read_clean_captions(tmp_path / "out") == found

    run_here(source, tmp_path / "words", "--size=32", "--filename_word_regex=[a-z]+", "--filename_join_string=_")
    found = read_clean_captions(tmp_path / "words")
    assert found["0012-a cat.png"] == "a_cat" and found["sub/said.png"] == "told"
    run_here(source, tmp_path / "names", "--size=32", "--caption", "filename", "--existing_caption=ignore")
    found = read_clean_captions(tmp_path / "names")
    assert found["sub/said.png"] == "said" and (tmp_path / "names" / "sub" / "said.txt").exists()
