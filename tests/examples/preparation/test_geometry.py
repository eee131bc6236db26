"""Parts and automatic sizes against the WebUI's formulas and against all possibilities."""

import itertools
import math
import random

import pytest

from examples.preparation.geometry import area_shares, automatic_size, fit_box, is_oversized, split_boxes


@pytest.mark.parametrize("overlap", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("sides", [(1200, 300), (300, 1200), (1000, 500), (513, 1030), (12000, 700)])
def test_parts_equal_those_of_the_webui(sides, overlap):
    """The WebUI resizes the image to the target width, then crops parts at whole pixels."""
    side, (width, height) = 256, sides
    boxes = split_boxes(width, height, (side, side), overlap)
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


def test_parts_of_any_aspect_ratio_cover_the_image():
    rng = random.Random(0)
    for _ in range(2000):
        width, height = rng.randrange(10, 3000), rng.randrange(10, 3000)
        size, overlap = (rng.randrange(1, 20) * 64, rng.randrange(1, 20) * 64), rng.choice([0, 0.1, 0.5])
        boxes = split_boxes(width, height, size, overlap)
        assert boxes[0][:2] == pytest.approx((0, 0)) and boxes[-1][2:] == pytest.approx((width, height))
        for box in boxes:
            assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(size[0] / size[1])
            assert min(box[:2]) >= 0 and box[2] <= width and box[3] <= height
        for a, b in itertools.pairwise(boxes):
            assert b[0] <= a[2] * (1 + 1e-9) and b[1] <= a[3] * (1 + 1e-9)


def test_fits_all_of_an_image():
    rng = random.Random(0)
    for _ in range(2000):
        width, height, size = (
            rng.randrange(1, 3000),
            rng.randrange(1, 3000),
            (rng.randrange(1, 999), rng.randrange(1, 999)),
        )
        box = fit_box(width, height, size)
        kept, filled = area_shares(width, height, box)
        assert kept == pytest.approx(1) and box[0] + box[2] == pytest.approx(width)
        assert box[1] + box[3] == pytest.approx(height)
        if box != (0, 0, width, height):
            assert filled < 0.99 and (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(size[0] / size[1])
    assert fit_box(400, 398, (512, 512)) == (0, 0, 400, 398) and fit_box(300, 100, (64, 64)) == (0, -100, 300, 200)


def test_splits_images_of_which_a_crop_keeps_little():
    for width, height in [(100, 100), (150, 100), (201, 100), (100, 200), (100, 199)]:
        aspect = min(width, height) / max(width, height)  # the WebUI's rule for squares
        assert is_oversized(width, height, (512, 512), 0.5) == (aspect <= 0.5)
    assert not is_oversized(1200, 300, (1024, 256), 0.5) and is_oversized(300, 300, (1024, 256), 0.5)
    assert not is_oversized(100, 100, (512, 512), 1.0)


@pytest.mark.parametrize("objective", ["area", "error"])
def test_automatic_size_is_the_best_of_all(objective):
    rng = random.Random(1)
    for _ in range(300):
        width, height, threshold = rng.randrange(100, 2000), rng.randrange(100, 2000), rng.choice([0.02, 0.1, 0.3])
        found = automatic_size(width, height, (384, 768), (64 * 64, 640 * 640), threshold, objective)
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
