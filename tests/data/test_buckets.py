"""Buckets against their definition, by trying every size."""

import random

import pytest

from hypernet.config import TrainingConfig
from hypernet.data.buckets import aspect_buckets, kept_share, nearest_bucket, size_table, training_size


@pytest.mark.parametrize("size", [(512, 512), (768, 512), (1024, 1024), (64, 64), (128, 128)])
def test_aspect_buckets(size):
    buckets, area = aspect_buckets(*size), size[0] * size[1]
    side = area**0.5
    for width, height in buckets:
        assert width % 64 == 0 and height % 64 == 0 and width * height <= area
        assert side / 2 <= min(width, height) and max(width, height) <= 2 * side
        assert (height, width) in buckets
        assert (width + 64) * height > area or width + 64 > 2 * side or (height + 64) * width > area
    if size[0] % 64 == 0 and size[1] % 64 == 0:
        assert size in buckets
    assert len(set(buckets)) == len(buckets)
    with pytest.raises(ValueError, match="48x48"):
        aspect_buckets(48, 48)


def test_nearest_bucket_crops_least():
    rng, buckets = random.Random(0), aspect_buckets(512, 512)
    for _ in range(300):
        width, height = rng.randrange(200, 3000), rng.randrange(200, 3000)
        scales = {size: max(size[0] / width, size[1] / height) for size in buckets}
        lost = {size: 1 - size[0] * size[1] / (width * height * scale**2) for size, scale in scales.items()}
        assert lost[nearest_bucket(width, height, buckets)] <= min(lost.values()) + 1e-9


def test_training_size_in_each_mode():
    assert training_size(1000, 333, TrainingConfig(), 8) == (512, 512)
    assert training_size(1003, 333, TrainingConfig(varsize=True), 8) == (1000, 328)
    with pytest.raises(ValueError, match="100x7 .* 8 pixels"):
        training_size(100, 7, TrainingConfig(varsize=True), 8)
    buckets = TrainingConfig(aspect_buckets=True)
    assert training_size(1024, 1024, buckets, 8) == (512, 512)
    assert training_size(3000, 2000, buckets, 8) == (640, 384)
    assert kept_share(3000, 2000, (640, 384)) == pytest.approx(0.9)  # the figure in examples/docs/data.md
    assert training_size(500, 300, buckets, 8) == (448, 256)  # not enlarged
    assert training_size(511, 511, buckets, 8) == (448, 448)
    assert training_size(6000, 250, buckets, 8) == (768, 192) and training_size(250, 8000, buckets, 8) == (192, 768)
    rng = random.Random(0)
    for _ in range(300):
        width, height = rng.randrange(64, 1200), rng.randrange(64, 1200)
        w, h = training_size(width, height, buckets, 8)
        assert w <= width and h <= height and w * h <= 512 * 512
        assert max(w, h) <= 4 * min(w, h) and w % 64 == h % 64 == 0
    assert training_size(500, 300, TrainingConfig(aspect_buckets=True, bucket_upscale=True), 8) == (640, 384)
    with pytest.raises(ValueError, match="--bucket_upscale"):
        training_size(500, 40, buckets, 8)


def test_size_table():
    sizes = [(512, 512)] * 5 + [(640, 384)] * 2 + [(64 * i, 64) for i in range(1, 21)]
    lines = size_table(sizes, 4).splitlines()
    assert lines[1].split() == ["512x512", "5", "2"] and lines[2].split() == ["640x384", "2", "1"]
    assert lines[-1].split() == ["6", "more", "6", "6"] and len(lines) == 18
