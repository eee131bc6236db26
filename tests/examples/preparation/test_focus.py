"""Crops with --focus: the subject stays in the frame, and the maps equal plain computations."""

import dataclasses
import math
import sys
import threading

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from examples.benchmarks import prepare as benchmark
from examples.preparation import focus
from examples.preparation.focus import Focus
from examples.quickstart.tools.shapes import draw, random_shape
from tests.helpers.preparation import run_here, write


def test_keeps_off_center_subjects_in_the_frame():
    by_focus, by_center = benchmark.subjects_kept(100)
    assert by_focus >= 95 and by_center < 50


def test_centers_a_subject_that_fits():
    canvas = Image.new("RGB", (400, 100), "white")
    canvas.paste(draw(dataclasses.replace(random_shape(2), x=0.5, y=0.5), 60), (290, 20))
    (left, top, right, bottom), kept = Focus().choose(canvas, (512, 512))
    assert kept > 0.99 and (top, bottom) == (0, 100) and right - left == pytest.approx(100)
    assert (left + right) / 2 == pytest.approx(320, abs=6)
    flat, kept = Focus().choose(Image.new("RGB", (400, 100), "red"), (512, 512))
    assert flat == pytest.approx((150, 0, 250, 100)) and kept == pytest.approx(0.25)


def test_maps_equal_plain_computations():
    gray = np.random.RandomState(0).randint(0, 256, (12, 15)).astype(np.float32)
    padded = np.pad(gray, 1, mode="edge")
    wide = np.pad(gray, 4, mode="edge")
    edges, entropy = focus.edges(gray), focus.entropy(gray)
    for y in range(12):
        for x in range(15):
            across, down = padded[y + 1, x + 2] - padded[y + 1, x], padded[y + 2, x + 1] - padded[y, x + 1]
            assert edges[y, x] == pytest.approx(math.hypot(across, down), rel=1e-5)
            counts = np.bincount((wide[y : y + 9, x : x + 9] // 16).astype(int).ravel())
            shares = counts[counts > 0] / 81
            assert entropy[y, x] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-6)
    assert (focus.entropy(np.full((9, 9), 7.0)) == 0).all()
    values = np.zeros((10, 40))
    values[4, 30] = 1
    box, kept = focus.best_box(values, 400, 100, (1, 1))
    assert box == pytest.approx((255, 0, 355, 100), abs=3) and kept == 1
    values[4, 1] = 1 / 3  # too far away for one crop
    assert focus.best_box(values, 400, 100, (1, 1))[1] == pytest.approx(3 / 4)


def draw_face(side=200):
    """Draw a face that a detector trained on photos recognizes: light and dark where they are on one."""
    image = Image.new("L", (side, side), 90)
    canvas = ImageDraw.Draw(image)

    def ellipse(x, y, rx, ry, fill):
        canvas.ellipse([side * (x - rx), side * (y - ry), side * (x + rx), side * (y + ry)], fill=fill)

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


def test_a_face_outweighs_edges():
    canvas = Image.new("RGB", (900, 300), (90, 90, 90))
    canvas.paste(draw_face(240), (20, 30))
    stripes = Image.fromarray((np.indices((240, 240)).sum(0) // 12 % 2 * 160 + 40).astype(np.uint8)).convert("RGB")
    canvas.paste(stripes, (640, 30))
    assert focus.can_find_faces()
    assert Focus().choose(canvas, (1, 1))[0][2] < 400
    assert Focus(face=0).choose(canvas, (1, 1))[0][0] > 560
    found = focus.faces(canvas, (96, 32))
    assert found[:, :30].any() and not found[:, 40:].any()


def test_works_without_opencv_and_says_so_once(tmp_path, monkeypatch):
    source = write(tmp_path / "in", {"a.png": (100, 60)})
    assert focus.NO_FACES not in run_here(source, tmp_path / "with", "--size=32", "--focus")
    monkeypatch.setitem(sys.modules, "cv2", None)  # as if it were not installed
    monkeypatch.setattr(focus, "_detectors", threading.local())
    printed = run_here(source, tmp_path / "without", "--size=32", "--focus")
    assert printed.count(focus.NO_FACES) == 1 and (tmp_path / "without" / "a.png").exists()
