"""Remedies for images of which little is kept, in training."""

import dataclasses

import pytest

from examples.preparation.remedies import percent, training_remedy
from hypernet.config import TrainingConfig


@pytest.mark.parametrize(
    "size, resolution, buckets, named",
    [
        ((400, 1200), "512", False, {"--aspect_buckets"}),  # three times as tall, a bucket fits
        ((1200, 400), "512x768", False, {"--aspect_buckets"}),  # wide against tall
        ((4000, 400), "512", False, {"--split", "--fit"}),  # no bucket fits
        ((4000, 400), "512", True, {"--split", "--fit"}),
        ((100, 300), "32", False, {"--split", "--fit"}),  # too small for buckets
    ],
)
def test_remedy_suits_the_shape(size, resolution, buckets, named):
    config = dataclasses.replace(TrainingConfig(), resolution=resolution, aspect_buckets=buckets)
    remedy = training_remedy(*size, config)
    assert {option for option in ("--aspect_buckets", "--split", "--fit") if option in remedy} == named


def test_shares_are_never_zero_percent():
    assert percent(0.394) == "39%" and percent(0.001) != "0%"
