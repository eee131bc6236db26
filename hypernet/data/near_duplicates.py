"""Which pictures are the same, or nearly so, seen small."""

import numpy as np
import torch
from PIL import Image

SIDE = 12  # pixels of a thumbnail
SHAPE = 0.05  # pictures of one shape have aspects whose logarithms differ by less
ROWS = 512  # compared at once


def thumbnail(image: Image.Image) -> np.ndarray:
    """An RGB picture as its mean colours in 12 x 12 fields: (432,) uint8."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX), np.uint8).ravel()


def find_near_duplicates(thumbnails, aspects, threshold: float = 0.02):
    """Yield (index, index of the first earlier one) of pictures of one shape that differ by less than `threshold`.

    Args:
        thumbnails: of `thumbnail`, one for each picture.
        aspects: width divided by height of each.
        threshold: the mean difference, of 1 between black and white.
    """
    if not len(thumbnails):
        return
    small = torch.from_numpy(np.stack(thumbnails).astype(np.float32) / 255)
    aspects = torch.tensor(aspects).log()
    for start in range(0, len(small), ROWS):
        distance = torch.cdist(small[start : start + ROWS], small, p=1) / small.shape[1]
        of_one_shape = (aspects[start : start + ROWS, None] - aspects).abs() < SHAPE
        for row, near in enumerate((distance < threshold) & of_one_shape):
            earlier = near[: start + row].nonzero()
            if len(earlier):
                yield start + row, int(earlier[0])
