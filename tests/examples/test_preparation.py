"""examples/prepare.py: geometry, 200 files of all kinds, stopping, captions, the crop at the subject, mistakes in one line."""

import argparse
import collections
import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image, ImageCms, ImageDraw, ImageFilter, ImageOps
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from examples import prepare
from examples.benchmarks import prepare as benchmark_prepare
from examples.preparation import captions as prepare_captions
from examples.preparation import cutting as prepare_cutting
from examples.preparation import focus as prepare_focus
from examples.preparation import geometry as prepare_geometry
from examples.preparation import options as prepare_options
from examples.preparation import sheet as prepare_sheet
from examples.quickstart.tools.draw import draw, random_scene
from examples.quickstart.tools.odd_images import write_mixed_pictures, write_odd_pictures
from hypernet.cli.script import run_script
from hypernet.data.image_folder import read_image_folder
from hypernet.data.image_io import on_background, read_image
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO


def run_here(source, target, *flags) -> str:
    """prepare.py within this process; what it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(io.StringIO()):
        prepare.main([str(source), str(target), *map(str, flags)])
    return said.getvalue()


def scene(seed, size=(96, 96)):
    return ImageOps.fit(draw(random_scene(random.Random(seed)), size=96), size)


def write(folder, pictures, **texts):
    """{name: picture or its sides} as files; texts by their stems."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, image) in enumerate(pictures.items()):
        image = scene(i, image) if isinstance(image, tuple) else image
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    return folder


def hashes(folder):
    """{path: (hash, time of modification)} of all that is in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def contents(folder):
    """{path: hash}, but for the record."""
    return {name: found[0] for name, found in hashes(folder).items() if name != "prepare.jsonl"}


def trained_captions(folder):
    """{path: caption} as the trainer has them, without any option."""
    config = argparse.Namespace(
        train_data_dir=folder, caption_column="text", filename_word_regex=None, filename_join_string=" "
    )
    found = read_image_folder(config)
    assert not found.problems and not found.notes
    return {image.relative_to(folder).as_posix(): captions[0] for image, captions in zip(found.images, found.captions)}


def shown(path):
    return np.asarray(on_background(read_image(path.read_bytes()), "white"), np.int16)


# --- Geometry


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("sides", [(1200, 300), (300, 1200), (1000, 500), (513, 1030), (12000, 700)])
def test_parts_are_those_of_the_webui(sides, overlap):
    """Its computation: the picture scaled to the wanted width, parts at whole pixels of that."""
    side, (width, height) = 256, sides
    boxes = prepare_geometry.split_boxes(width, height, (side, side), overlap)
    length = max(sides) * side / min(sides)
    count = math.ceil((length - side * overlap) / (side * (1 - overlap)))
    starts = [(length - side) / (count - 1) * i for i in range(count)]
    scale = min(sides) / side
    assert len(boxes) == count
    for box, start in zip(boxes, starts):
        start, end = start * scale, (start + side) * scale
        expected = (start, 0, end, height) if width > height else (0, start, width, end)
        assert box == pytest.approx(expected)
    if overlap and count > 1:
        shared = boxes[0][2] - boxes[1][0] if width > height else boxes[0][3] - boxes[1][1]
        assert shared >= overlap * min(sides) - 1e-6


def test_parts_of_another_aspect_cover_the_picture():
    rng = random.Random(0)
    for _ in range(2000):
        width, height = rng.randrange(10, 3000), rng.randrange(10, 3000)
        size, overlap = (rng.randrange(1, 20) * 64, rng.randrange(1, 20) * 64), rng.choice([0, 0.1, 0.5])
        boxes = prepare_geometry.split_boxes(width, height, size, overlap)
        assert boxes[0][:2] == pytest.approx((0, 0)) and boxes[-1][2:] == pytest.approx((width, height))
        for box in boxes:
            assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(size[0] / size[1])
            assert min(box[:2]) >= 0 and box[2] <= width and box[3] <= height
        for a, b in itertools.pairwise(boxes):
            assert b[0] <= a[2] * (1 + 1e-9) and b[1] <= a[3] * (1 + 1e-9)


def test_what_is_split():
    oversized = prepare_geometry.is_oversized
    for width, height in [(100, 100), (150, 100), (201, 100), (100, 200), (100, 199)]:
        aspect = min(width, height) / max(width, height)  # the WebUI's, for a square
        assert oversized(width, height, (512, 512), 0.5) == (aspect <= 0.5)
    assert not oversized(1200, 300, (1024, 256), 0.5) and oversized(300, 300, (1024, 256), 0.5)
    assert not oversized(100, 100, (512, 512), 1.0)


@pytest.mark.parametrize("objective", ["area", "error"])
def test_automatic_sizes_against_all_there_are(objective):
    rng = random.Random(1)
    for _ in range(300):
        width, height, threshold = rng.randrange(100, 2000), rng.randrange(100, 2000), rng.choice([0.02, 0.1, 0.3])
        found = prepare_geometry.automatic_size(width, height, (384, 768), (64 * 64, 640 * 640), threshold, objective)
        best = None
        for w in range(384, 769, 64):
            for h in range(384, 769, 64):
                ratio = (width / height) / (w / h)
                error = 1 - min(ratio, 1 / ratio)
                if 64 * 64 <= w * h <= 640 * 640 and error <= threshold:
                    key = (w * h, -error) if objective == "area" else (-error, w * h)
                    best = max(best, key) if best else key
        assert (found is None) == (best is None)
        if found:
            ratio = (width / height) / (found[0] / found[1])
            error = 1 - min(ratio, 1 / ratio)
            area = found[0] * found[1]
            assert ((area, -error) if objective == "area" else (-error, area)) == pytest.approx(best)


def test_outputs_are_those_parts(tmp_path):
    source = write(tmp_path / "in", {"long.png": (300, 100), "plain.png": (128, 96), "wide.png": (180, 100)})
    run_here(source, tmp_path / "out", "--size=64x48", "--split", "--flip")
    made = {name for name in hashes(tmp_path / "out") if name.endswith(".png")}
    parts = [f"long-{i}" for i in (1, 2, 3)]
    assert made == {f"{stem}{end}.png" for stem in (*parts, "plain", "wide") for end in ("", "-flipped")}
    places = {"plain": (0.5, 0.5), "wide": (0.5, 0.5), **{part: (i / 2, 0) for i, part in enumerate(parts)}}
    for name, centering in places.items():
        image = Image.open(source / f"{name.partition('-')[0]}.png")
        expected = ImageOps.fit(image, (64, 48), Image.Resampling.LANCZOS, centering=centering)
        found = Image.open(tmp_path / "out" / f"{name}.png")
        assert found.mode == "RGB" and np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1
        mirrored = Image.open(tmp_path / "out" / f"{name}-flipped.png")
        assert (np.asarray(mirrored) == np.asarray(found)[:, ::-1]).all()
    out = tmp_path / "sizes"
    said = run_here(source, out, "--auto_size", "--size_threshold=0.05", "--objective=error")
    assert Image.open(out / "plain.png").size == (512, 384) and "left out: long.png: 300x100 has no automatic" in said


def test_pixels_are_all_that_is_written(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "in"
    source.mkdir()
    image = scene(1)
    image.save(source / "keyed.png", transparency=image.getpixel((0, 0)), icc_profile=profile, dpi=(72, 72))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    clear.save(source / "clear.png")
    run_here(source, tmp_path / "white", "--size=96")
    run_here(source, tmp_path / "red", "--size=96", "--background=red")
    run_here(source, tmp_path / "kept", "--size=48", "--keep_alpha")
    for name in ("keyed", "clear"):
        for folder, color in (("white", "white"), ("red", "red")):
            found = Image.open(tmp_path / folder / f"{name}.png")
            found.load()
            assert found.mode == "RGB" and not set(found.info) - {"srgb"}
            expected = on_background(read_image((source / f"{name}.png").read_bytes()), color)
            assert (np.asarray(found) == np.asarray(expected)).all()
    kept = Image.open(tmp_path / "kept" / "clear.png")
    expected = clear.resize((48, 48), Image.Resampling.LANCZOS)
    assert kept.mode == "RGBA" and np.abs(np.asarray(kept, int) - np.asarray(expected, int)).max() <= 1


# --- Real files


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mixed") / "in"
    return folder, write_mixed_pictures(folder)


def test_200_files_of_all_kinds(mixed, tmp_path):
    source, refused = mixed
    before, out = hashes(source), tmp_path / "out"
    assert sum(not name.endswith(".txt") for name in before) == 200 and len(refused) == 15
    said = run_here(source, out, "--size=48x64", "--split", "--flip", "--focus", "--sheet_images=4")
    assert hashes(source) == before
    reasons = dict(re.findall(r"^left out: (.*?): (.*)$", said, re.M))
    assert reasons.keys() == refused.keys()
    for name, reason in refused.items():
        assert reason in reasons[name], name
    entries = [json.loads(line) for line in (out / "prepare.jsonl").read_text().splitlines()]
    done = {entry["source"]: entry for entry in entries if "files" in entry}
    assert done.keys() == {name for name in before if not name.endswith(".txt")} - refused.keys()
    files = [name for entry in done.values() for name in entry["files"]]
    assert len(files) == len({name.casefold() for name in files})  # nothing of two sources in one file
    assert contents(out).keys() == set(files)
    for name in files:
        if name.endswith(".png"):
            with Image.open(out / name) as image:
                assert image.format == "PNG" and image.mode == "RGB" and image.size == (48, 64), name
                image.load()
    expected = captions_of(source)
    found = trained_captions(out)
    for name, entry in done.items():
        assert {found[file] for file in entry["files"] if file.endswith(".png")} == {expected[name]}, name
    panorama = next(entry for entry in done.values() if entry["width"] == 12_000)
    assert len(panorama["boxes"]) == math.ceil((12_000 - 300 * 0.2) / (300 * 0.8))
    turned = done["one/same again.jpg"]
    assert shown(out / turned["files"][0]).shape == (64, 48, 3)
    total = sum(name.endswith(".png") for name in files)
    assert f"{total} pictures from {len(done)} of 200 files" in said
    assert Image.open(tmp_path / "out_sheet.png").size[0] > 300

    before = hashes(out)
    said = run_here(source, out, "--size=48x64", "--split", "--flip", "--focus", "--sheet_images=0")
    assert {**hashes(out), "prepare.jsonl": 0} == {**before, "prepare.jsonl": 0}
    assert f"{len(done)} of the files were done before, nothing is new" in said and "left out: " in said


def captions_of(folder):
    """As the trainer has them of files of which some cannot be opened."""
    config = argparse.Namespace(train_data_dir=folder, caption_column="text")
    config.filename_word_regex, config.filename_join_string = None, " "
    found = read_image_folder(config)
    return {image.relative_to(folder).as_posix(): captions[0] for image, captions in zip(found.images, found.captions)}


def test_what_is_small_or_twice_is_told_or_left_out(tmp_path):
    large = scene(3, (90, 90))
    pictures = {"a.png": large.resize((60, 60)), "b.jpg": large, "c.png": (90, 90), "tiny.png": scene(9, (20, 30))}
    source = write(tmp_path / "in", pictures)
    said = run_here(source, tmp_path / "told", "--size=48")
    assert "small: tiny.png (20x30), enlarged 2.4 times" in said and "left out" not in said
    assert "the same picture, or nearly so: a.png and b.jpg" in said and said.count("nearly so") == 1
    flags = ("--size=48", "--skip_small", "--skip_duplicates")
    said = run_here(source, tmp_path / "left", *flags)
    assert "done before" not in said
    assert "left out: a.png: the same picture as b.jpg, or nearly so" in said
    assert "left out: tiny.png: 20x30 is too small, it would be enlarged 2.4 times" in said
    assert {name for name in contents(tmp_path / "left")} == {"b.png", "c.png"}
    before = hashes(tmp_path / "left")
    run_here(source, tmp_path / "left", *flags)
    assert contents(tmp_path / "left").keys() == {"b.png", "c.png"}
    assert {**hashes(tmp_path / "left"), "prepare.jsonl": 0} == {**before, "prepare.jsonl": 0}
    said = run_here(source, tmp_path / "less", "--size=48", "--max_enlarged=3", "--same_threshold=0")
    assert "small: " not in said and "nearly so" not in said


# --- The subject


def test_off_centre_subjects_stay_in_the_frame():
    focus, middle = benchmark_prepare.subjects_kept(100)
    assert focus >= 95 and middle < 50


def test_a_subject_that_fits_is_not_at_the_rim():
    canvas = Image.new("RGB", (400, 100), "white")
    canvas.paste(draw(random_scene(random.Random(2)), size=60), (290, 20))
    left, top, right, bottom = prepare_focus.Focus().box(canvas, (512, 512))
    assert (top, bottom) == (0, 100) and right - left == pytest.approx(100)
    assert (left + right) / 2 == pytest.approx(320, abs=6)
    flat = prepare_focus.Focus().box(Image.new("RGB", (400, 100), "red"), (512, 512))
    assert flat == pytest.approx((150, 0, 250, 100))


def test_maps_against_plain_computations():
    grey = np.random.RandomState(0).randint(0, 256, (12, 15)).astype(np.float32)
    padded = np.pad(grey, 1, mode="edge")
    wide = np.pad(grey, 4, mode="edge")
    for y in range(12):
        for x in range(15):
            across, down = padded[y + 1, x + 2] - padded[y + 1, x], padded[y + 2, x + 1] - padded[y, x + 1]
            assert prepare_focus.edges(grey)[y, x] == pytest.approx(math.hypot(across, down), rel=1e-5)
            counts = np.bincount((wide[y : y + 9, x : x + 9] // 16).astype(int).ravel())
            shares = counts[counts > 0] / 81
            assert prepare_focus.entropy(grey)[y, x] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-6)
    assert (prepare_focus.entropy(np.full((9, 9), 7.0)) == 0).all()
    values = np.zeros((10, 40))
    values[4, 30] = 1
    assert prepare_focus.best_box(values, 400, 100, (1, 1)) == pytest.approx((255, 0, 355, 100), abs=3)


def drawn_face(side=200):
    """A face as a detector that was trained on photos knows it: light and dark where they are on one."""
    image = Image.new("L", (side, side), 90)
    draw_on = ImageDraw.Draw(image)

    def ellipse(x, y, rx, ry, fill):
        draw_on.ellipse([side * (x - rx), side * (y - ry), side * (x + rx), side * (y + ry)], fill=fill)

    ellipse(0.5, 0.36, 0.4, 0.34, 30)
    ellipse(0.5, 0.53, 0.34, 0.42, 205)
    for x in (0.35, 0.65):
        ellipse(x, 0.4, 0.11, 0.025, 50)
        ellipse(x, 0.475, 0.1, 0.055, 120)
        ellipse(x, 0.475, 0.045, 0.04, 20)
    ellipse(0.5, 0.56, 0.045, 0.11, 228)
    ellipse(0.5, 0.665, 0.075, 0.022, 110)
    ellipse(0.5, 0.775, 0.14, 0.032, 90)
    return image.filter(ImageFilter.GaussianBlur(side / 60)).convert("RGB")


def test_a_face_counts_more_than_edges():
    canvas = Image.new("RGB", (900, 300), (90, 90, 90))
    canvas.paste(drawn_face(240), (20, 30))
    stripes = Image.fromarray((np.indices((240, 240)).sum(0) // 12 % 2 * 160 + 40).astype(np.uint8)).convert("RGB")
    canvas.paste(stripes, (640, 30))
    assert prepare_focus.can_find_faces()
    assert prepare_focus.Focus().box(canvas, (1, 1))[2] < 400
    assert prepare_focus.Focus(face=0).box(canvas, (1, 1))[0] > 560
    seen = prepare_focus.faces(canvas, (96, 32))
    assert seen[:, :30].any() and not seen[:, 40:].any()


def test_without_opencv_a_line_says_so(tmp_path, monkeypatch):
    source = write(tmp_path / "in", {"a.png": (100, 60)})
    assert prepare_focus.NO_FACES not in run_here(source, tmp_path / "with", "--size=32", "--focus")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    monkeypatch.setattr(prepare_focus, "_detectors", threading.local())
    said = run_here(source, tmp_path / "without", "--size=32", "--focus")
    assert said.count(prepare_focus.NO_FACES) == 1 and (tmp_path / "without" / "a.png").exists()


# --- Stopping, going on, other files


def test_killed_half_way_it_ends_as_if_left_alone(mixed, tmp_path):
    source, _ = mixed
    flags = ["--size=64", "--flip", "--split", "--sheet_images=2"]
    run_here(source, tmp_path / "whole", *flags)
    script = [sys.executable, str(REPO / "examples" / "prepare.py"), str(source), str(tmp_path / "out"), *flags]
    process = subprocess.Popen(script, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out").rglob("*.png"))) < 60:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.wait()
    half = hashes(tmp_path / "out")
    half = {name: found for name, found in half.items() if "/." not in f"/{name}" and name != "prepare.jsonl"}
    whole = contents(tmp_path / "whole")
    assert 60 <= len(half) < len(whole)
    with open(tmp_path / "out" / "prepare.jsonl", "a") as file:
        file.write('{"source": "half a li')
    said = run_here(source, tmp_path / "out", *flags)
    assert re.search(r"[1-9]\d* of the files were done before", said)
    assert contents(tmp_path / "out") == whole
    after = hashes(tmp_path / "out")
    assert all(after[name] == found for name, found in half.items())  # not written again
    assert (tmp_path / "out_sheet.png").exists()


def test_ctrl_c_ends_with_one_line(mixed, tmp_path, capsys):
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
    assert not [path for path in (tmp_path / "out").rglob("*.tmp")]
    run_here(source, tmp_path / "out", "--size=64")
    run_here(source, tmp_path / "whole", "--size=64")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_nothing_is_overwritten_unless_asked(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "b.png": (60, 60), "c.png": (90, 30)}, b="words")
    out = tmp_path / "out"
    write(out, {"a.png": (9, 9), "else.png": (9, 9), "c-2.png": (9, 9)})
    (out / "notes.txt").write_text("mine")
    mine = contents(out)
    said = run_here(source, out, "--size=32", "--split")
    for name, other in (("a.png", "a.png"), ("c.png", "c-2.png")):
        assert f"left out: {name}: {out / other} is in its way, which this script has not made" in said
    assert contents(out).items() >= mine.items() and contents(out).keys() - mine.keys() == {"b.png", "b.txt"}

    (out / "b.txt").write_text("corrected by hand")
    run_here(source, out, "--size=32", "--split")
    assert (out / "b.txt").read_text() == "corrected by hand"
    kept = hashes(out)
    with pytest.raises(UserError, match=r"other options: --size \(\[32, 32\] then\); name another folder, or --over"):
        run_here(source, out, "--size=48", "--split")
    other = write(tmp_path / "other", {"a.png": (60, 60)})
    with pytest.raises(UserError, match="made with other options: SRC"):
        run_here(other, out, "--size=32", "--split")
    assert hashes(out) == kept
    run_here(source, out, "--size=48", "--overwrite")
    assert Image.open(out / "b.png").size == (48, 48) and (out / "b.txt").read_text() == "words\n"
    assert Image.open(out / "c.png").size == (48, 48)  # not to be split, so c-2.png is not in its way
    assert contents(out).items() >= mine.items()
    (out / "b.png").unlink()
    write(source, {"d.png": (60, 60)})
    run_here(source, out, "--size=48")
    assert (out / "b.png").exists() and (out / "d.png").exists()

    sheet = tmp_path / "new_sheet.png"
    Image.new("RGB", (3, 3)).save(sheet)
    assert f"{sheet} is there already" in run_here(source, tmp_path / "new", "--size=32")
    assert Image.open(sheet).size == (3, 3)


def test_what_lies_in_the_place_of_a_picture_that_was_left_out_is_not_deleted(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "small.png": (9, 9)})
    assert "left out: small.png" in run_here(source, tmp_path / "out", "--size=32", "--skip_small")
    scene(3).save(tmp_path / "out" / "small.png")
    (tmp_path / "out" / "small.txt").write_text("mine")
    mine = {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("small")}
    run_here(source, tmp_path / "out", "--size=48", "--skip_small", "--overwrite")
    assert Image.open(tmp_path / "out" / "a.png").size == (48, 48)
    assert {name: data for name, data in contents(tmp_path / "out").items() if name.startswith("small")} == mine
    assert len(mine) == 2


def test_what_is_only_told_may_be_told_otherwise(tmp_path):
    source = write(tmp_path / "in", {"a.png": (30, 30)})
    assert "small: a.png" in run_here(source, tmp_path / "out", "--size=32")
    assert "small" not in run_here(source, tmp_path / "out", "--size=32", "--max_enlarged=2")


def test_a_picture_that_has_changed_or_gone_is_told(tmp_path):
    source = write(tmp_path / "in", {"a.png": (60, 60), "b.png": (60, 60)})
    run_here(source, tmp_path / "out", "--size=32")
    made = contents(tmp_path / "out")
    scene(7).save(source / "a.png")
    (source / "b.png").unlink()
    said = run_here(source, tmp_path / "out", "--size=32")
    assert "note: 1 pictures have changed since, such as a.png; --overwrite makes all anew" in said
    assert "note: 1 pictures are no longer in SRC, such as b.png" in said and contents(tmp_path / "out") == made


# --- Captions


def test_the_trainer_reads_the_right_captions(tmp_path):
    pictures = {"0012-a cat.png": (99, 33), "a dog.png": (50, 50), "a dog.jpg": (51, 51), "sub/bird.png": (40, 40)}
    source = write(tmp_path / "in", {**pictures, "sub/said.png": (40, 40), "listed.png": (40, 40)})
    (source / "sub" / "bird.txt").write_text("a bird,\nin two lines")
    rows = [{"file_name": "listed.png", "text": ["first", "second"]}, {"file_name": "sub/said.png", "text": "told"}]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = run_here(source, tmp_path / "out", "--size=32", "--split", "--flip")
    assert "note: 1 pictures have several captions; the first of them is taken" in said
    found = trained_captions(tmp_path / "out")
    expected = {"a cat": 8, "a dog": 4, "a bird,\nin two lines": 2, "told": 2, "first": 2}
    assert collections.Counter(found.values()) == expected
    texts = {name for name in contents(tmp_path / "out") if name.endswith(".txt")}
    assert not (tmp_path / "out" / "a dog.txt").exists() and "0012-a cat-2-flipped.txt" in texts
    (tmp_path / "out" / "sub" / "said-flipped.txt").unlink()
    run_here(source, tmp_path / "out", "--size=32", "--split", "--flip")
    assert trained_captions(tmp_path / "out") == found

    run_here(source, tmp_path / "words", "--size=32", "--filename_word_regex=[a-z]+", "--filename_join_string=_")
    found = trained_captions(tmp_path / "words")
    assert found["0012-a cat.png"] == found["0012-a cat.png"] == "a_cat" and found["sub/said.png"] == "told"
    run_here(source, tmp_path / "names", "--size=32", "--caption", "filename", "--existing_caption=ignore")
    found = trained_captions(tmp_path / "names")
    assert found["sub/said.png"] == "said" and (tmp_path / "names" / "sub" / "said.txt").exists()


def test_texts_are_joined():
    combine = prepare_captions.combine
    assert [combine("old, new", ["new, red"], mode) for mode in ("ignore", "copy", "prepend", "append")] == [
        "new, red",
        "old, new",
        "old, new, red",
        "new, red, old",
    ]
    assert combine(None, [], "copy") is None and combine("", [], "copy") == "" and combine("", ["x"], "copy") == "x"
    assert combine("old", [], "ignore") is None and combine("old", [], "append") == "old"
    assert combine(None, ["a cat", "cat, A cat, red"], "copy") == "a cat, cat, red"


TAGS = [("general", 9), ("blue_sky", 0), ("red_hair", 0), ("o_o", 0), ("green_(leaf)", 4), ("dull", 0)]


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    """A tagger that sees mean colours: blue_sky is the blue of a picture, and so on; o_o is always 0.6."""
    folder = tmp_path_factory.mktemp("tagger")
    rows = [f"{i},{name},{category},1" for i, (name, category) in enumerate(TAGS)]
    (folder / "selected_tags.csv").write_text("\n".join(["tag_id,name,category,count", *rows]))
    matrix = np.zeros((3, len(TAGS)), np.float32)  # from BGR
    matrix[0, 1], matrix[2, 2], matrix[1, 4] = 1 / 255, 1 / 255, 1 / 255
    bias = np.array([0.99, 0, 0, 0.6, 0, 0.1], np.float32)
    nodes = [
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("MatMul", ["means", "matrix"], ["products"]),
        helper.make_node("Add", ["products", "bias"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", len(TAGS)])],
        [onnx.numpy_helper.from_array(matrix, "matrix"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return folder


@pytest.fixture(scope="module")
def colors(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colors")
    pictures = {"blue.png": (0, 128, 255), "red.png": (230, 0, 90), "grey.png": (10, 10, 10)}
    write(folder, {name: Image.new("RGB", (40, 40), color) for name, color in pictures.items()})
    (folder / "grey.txt").write_text("a dark one, o_o")
    return folder


def test_tagger(tagger, colors, tmp_path):
    def tags(name, *flags):
        run_here(colors, tmp_path / name, "--size=32", "--caption", "tagger", "--tagger_model", tagger, *flags)
        return trained_captions(tmp_path / name)

    found = tags("plain")
    assert found == {"blue.png": "blue sky, o_o, green (leaf)", "red.png": "red hair, o_o, blue sky"} | {
        "grey.png": "a dark one, o_o"
    }
    assert tags("high", "--tagger_threshold=0.55")["blue.png"] == "blue sky, o_o"
    assert tags("written", "--keep_underscores", "--escape_brackets")["blue.png"] == r"blue_sky, o_o, green_\(leaf\)"
    found = tags("ordered", "--order=alphabet", "--exclude_tags", "Blue Sky, unknown")
    assert found["blue.png"] == "green (leaf), o_o" and found["red.png"] == "o_o, red hair"
    assert tags("ignored", "--existing_caption=ignore")["grey.png"] == "o_o"
    found = tags("before", "--existing_caption=prepend", "--tagger_threshold=0.05")["grey.png"]
    assert found == "a dark one, o_o, dull"
    found = tags("after", "--existing_caption=append", "--tagger_threshold=0.05")["grey.png"]
    assert found == "o_o, dull, a dark one"
    found = tags("several", "--caption", "filename", "tagger", "--flip")
    assert found["red.png"] == found["red-flipped.png"] == "red, red hair, o_o, blue sky"


def test_a_tagger_sees_the_picture_on_a_white_square():
    image = Image.new("RGB", (20, 10), (200, 100, 50))
    pixels = prepare_captions.tagger_pixels(image, 20)
    assert pixels.shape == (1, 20, 20, 3) and pixels.dtype == np.float32
    assert (pixels[0, 10, 10] == (50, 100, 200)).all() and (pixels[0, 1] == 255).all() and (pixels[0, -2] == 255).all()
    faces = ["o_o", ">_<", "^_^", "(o)_(o)", "||_||", "+_-", "._."]
    assert all(map(prepare_captions.is_kaomoji, faces))
    assert not any(map(prepare_captions.is_kaomoji, ["long_hair", "1girl", "t_shirt", "cat", ":d"]))


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """A BLIP of random weights that knows six words."""
    folder = tmp_path_factory.mktemp("blip") / "model"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "a", "red", "cat", "dog", "on", "grass"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = BertTokenizer(vocab=vocabulary, bos_token="[DEC]")
    sides = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": 12, "bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**sides, **ids, "encoder_hidden_size": 16, "max_position_embeddings": 32, "projection_dim": 16}
    config = BlipConfig(text_config=text, vision_config={**sides, "image_size": 32, "patch_size": 16})
    torch.manual_seed(0)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessorPil(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def test_a_captioning_model(blip, colors, tmp_path):
    run_here(colors, tmp_path / "out", "--size=32", "--caption", blip, "--caption_tokens=5")
    found = trained_captions(tmp_path / "out")
    model = BlipForConditionalGeneration.from_pretrained(blip).eval()
    processor = BlipProcessor.from_pretrained(blip)
    for name in ("blue", "red"):
        inputs = processor(images=Image.open(tmp_path / "out" / f"{name}.png"), return_tensors="pt")
        expected = processor.decode(model.generate(**inputs, max_new_tokens=5)[0], skip_special_tokens=True)
        assert expected and found[f"{name}.png"] == expected
    assert found["grey.png"] == "a dark one, o_o"
    run_here(
        colors, tmp_path / "asked", "--size=32", "--caption", blip, "--caption_prompt=a red cat", "--caption_tokens=5"
    )
    assert trained_captions(tmp_path / "asked")["red.png"].startswith("a red cat")


def test_texts_for_all_need_no_model(tmp_path):
    source = write(tmp_path / "in", {"a.png": (40, 40)}, a="written")
    run_here(source, tmp_path / "out", "--size=32", "--caption", "blip", "tagger")
    assert trained_captions(tmp_path / "out") == {"a.png": "written"}


# --- The sheet


def test_the_sheet_shows_before_and_after(tmp_path):
    write_odd_pictures(tmp_path / "in")
    said = run_here(tmp_path / "in", tmp_path / "out", "--size=64", "--split", "--sheet_images=7")
    sheet, card = Image.open(tmp_path / "out_sheet.png"), prepare_sheet.CARD
    gap, head = prepare_sheet.GAP, 3 * prepare_sheet.FONT
    assert sheet.size == (3 * (card[0] + gap) + gap, 3 * (card[1] + gap) + gap + head)  # seven in rows of three
    assert "out_sheet.png: before and after, to look at" in said and not (tmp_path / "out" / "out_sheet.png").exists()
    first = np.asarray(sheet, int)[gap + head :, gap:]
    left = prepare_sheet.PAD + prepare_sheet.CELL + prepare_sheet.ARROW
    after = first[prepare_sheet.PAD :, left:][: prepare_sheet.CELL, : prepare_sheet.CELL]
    made = Image.open(tmp_path / "out" / "clear.png").resize((prepare_sheet.CELL,) * 2, Image.Resampling.LANCZOS)
    assert np.abs(after - np.asarray(made, int)).max() <= 1
    before = first[prepare_sheet.PAD :, prepare_sheet.PAD :][: prepare_sheet.CELL, : prepare_sheet.CELL]
    assert np.abs(before[5:-5, 5:-5] - after[5:-5, 5:-5]).mean() < 12 and before[0, 9].tolist() == [255, 140, 26]
    run_here(tmp_path / "in", tmp_path / "none", "--size=64", "--sheet_images=0")
    assert not (tmp_path / "none_sheet.png").exists()


# --- Mistakes


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return write(folder / "in", {"a.png": (40, 40)})


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--size=0"], "--size 0: write a side"),
        (["--size=big"], "--size big: write a side"),
        (["--size=99999"], "--size 99999x99999: more than 100000000 pixels"),
        (["--background=whit"], "--background whit: it is no colour"),
        (["--overlap_ratio=1"], "--overlap_ratio 1.0: it must be 0.9 at most"),
        (["--split_threshold=nan"], "--split_threshold nan: it must be 0 or more"),
        (["--split_threshold=2"], "--split_threshold 2.0: it is a share, from 0 to 1"),
        (["--face_weight=-1"], "--face_weight -1.0: it must be 0 or more"),
        (["--focus", "--face_weight=0", "--edges_weight=0", "--entropy_weight=0"], "--focus: one of --face_weight"),
        (["--auto_size", "--min_side=800"], "--auto_size: from 800 to 768 pixels a side"),
        (["--max_area=0"], "--max_area 0: it must be above 0"),
        (["--objective=big"], "--objective: invalid choice"),
        (["--caption", "blipp"], "--caption blipp: write filename, blip, tagger, a model's Hub id"),
        (["--caption", "blip"], "--caption Salesforce/blip-image-captioning-base: it cannot be loaded, neither from"),
        (["--caption", "nobody/nothing"], "--caption nobody/nothing: it cannot be loaded, neither from here nor"),
        (["--caption", "tagger"], "--caption tagger --tagger_model SmilingWolf/wd-vit-tagger-v3: it cannot be loaded"),
        (["--caption", "tagger", "--tagger_model=."], "--caption tagger --tagger_model .: it cannot be loaded"),
        (["--filename_word_regex=("], "--filename_word_regex (: it is no regular expression"),
        (["--caption_column=x"], "--caption_column x: "),
        (["--siz=3"], "unrecognized arguments: --siz=3; did you mean --size?"),
        (["--sheet_images=-1"], "--sheet_images -1: it must be 0 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(one, tmp_path, flags, message):
    with pytest.raises(UserError) as error:
        run_here(one, tmp_path / "out", *flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    if "--caption" in flags and "loaded" in message:
        assert "leave it out to go on with the texts and file names that there are" in str(error.value)
    assert not list(tmp_path.rglob("*.png")) and len(list(one.iterdir())) == 1


def test_folders_that_cannot_be(one, tmp_path):
    (tmp_path / "link").symlink_to(one)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"")
    linked = write(tmp_path / "linked", {"a.png": (40, 40)})
    there = write(tmp_path / "target" / "sub", {"b.png": (40, 40)}).parent
    (linked / "sub").symlink_to(there / "sub")
    for source, target, message in [
        (one, one, "it is SRC itself, which is never changed"),
        (one, tmp_path / "link", "it is SRC itself"),
        (one, one / "sub" / "out", f"it lies in SRC {one}"),
        (one, one.parent, f"SRC {one}: it lies in DST"),
        (tmp_path / "nowhere", tmp_path / "out", f"SRC {tmp_path / 'nowhere'}: there is no such folder"),
        (tmp_path / "empty", tmp_path / "out", "there is no image in it"),
        (tmp_path / "file", tmp_path / "out", "it is a file"),
        (one, tmp_path / "file", "it is a file; name a folder"),
        (one, tmp_path / "file" / "out", "it cannot be written"),
        (broken, tmp_path / "out", "none of its pictures can be used"),
        (linked, there, "in SRC links to it; name another folder"),
    ]:
        with pytest.raises(UserError) as error:
            run_here(source, target)
        assert message in str(error.value) and "\n" not in str(error.value)
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "prepare.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match="it is no record of prepare.py"):
        run_here(one, tmp_path / "odd")


def test_without_onnxruntime_a_line_says_so(one, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # as if it were not installed
    with pytest.raises(UserError, match="--caption tagger: pip install onnxruntime; or leave it out to go on"):
        run_here(one, tmp_path / "out", "--caption", "tagger")


def test_the_guide_has_every_option():
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:
        prepare_options.parse_arguments("", ["--help"])
    options = set(re.findall(r"--[a-z_]+", said.getvalue())) - {"--help", "--alpha_weight"}
    guide = (REPO / "examples" / "docs" / "prepare.md").read_text()
    assert options and options <= set(re.findall(r"--[a-z_]+", guide))


def test_a_strip_is_no_picture():
    args = prepare_options.parse_arguments("", ["in", "out", "--split"])
    with pytest.raises(ValueError, match="would become 1250 pictures, more than 100"):
        prepare_cutting.choose_cut(Image.new("RGB", (8000, 8)), args)
