"""Find images that are the same or nearly so, by comparing thumbnails."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from PIL import Image

SIDE = 12  # pixels of a thumbnail
SAME_SHAPE = 0.05  # images have the same shape if the logarithms of their aspect ratios differ by less
ROWS = 512  # compared at once


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the mean colors of an RGB image on a 12 x 12 grid, (432,) uint8."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.uint8).ravel()


def find_near_duplicates(
    thumbnails: Sequence[np.ndarray], aspects: Sequence[float], threshold: float = 0.02
) -> Iterator[tuple[int, int]]:
    """Yield (index, index of the first earlier match) for images of the same shape that are almost equal.

    Args:
        thumbnails: the `thumbnail` of each image.
        aspects: width divided by height of each image.
        threshold: largest mean absolute difference; black and white differ by 1.
    """
    if not len(thumbnails):
        return
    small = torch.from_numpy(np.stack(thumbnails).astype(np.float32) / 255)  # (images, 432)
    logs = torch.tensor(aspects).log()
    for start in range(0, len(small), ROWS):
        distance = torch.cdist(small[start : start + ROWS], small, p=1) / small.shape[1]  # (ROWS, images)
        same_shape = (logs[start : start + ROWS, None] - logs).abs() < SAME_SHAPE
        for row, near in enumerate((distance < threshold) & same_shape):
            earlier = near[: start + row].nonzero()
            if len(earlier):
                yield start + row, int(earlier[0])
