"""Where prepare.py crops an image, and to which size: pure functions of widths and heights in pixels.

The rules are those of the AUTOMATIC1111 WebUI's Preprocess tab (textual_inversion/preprocess.py) where it has any; each
function notes what differs. A box is (left, top, right, bottom) in pixels of the original image and may be fractional;
background fills whatever exceeds the image.
"""

import functools
import math

from hypernet.data.buckets import kept_share
from hypernet.data.image_io import Box, crop_box

STEP = 64  # sides of automatic sizes are multiples of this
SAME_ASPECT = 0.99  # if a crop keeps this share of an image, their shapes count as the same


def is_oversized(width: int, height: int, size: tuple[int, int], threshold: float) -> bool:
    """Return whether a crop to the aspect ratio of `size` would keep so little of an image that it should be split.

    That is, at most `threshold` of it. The WebUI compares aspect ratios instead and assumes that the longer side is
    cut, which fails for some sizes that are not square. For square sizes the two rules agree.
    """
    return kept_share(width, height, size) <= threshold and kept_share(width, height, size) < 1


def split_count(length: float, side: float, overlap: float) -> int:
    """Return how many parts of `side` pixels cover `length` if neighbors share at least a fraction `overlap` of a part.

    The WebUI's formula: ceil((length - side * overlap) / (side * (1 - overlap))).
    """
    return math.ceil((length - side * overlap) / (side * (1 - overlap)) - 1e-9)  # tolerate rounding errors


def split_boxes(width: int, height: int, size: tuple[int, int], overlap: float) -> list[Box]:
    """Return evenly spaced boxes that cover an image, each the largest with the aspect ratio of `size`.

    The WebUI's boxes, without its rounding to whole pixels.
    """
    _, _, part_width, part_height = crop_box(width, height, size, (0, 0))
    count = max(split_count(width, part_width, overlap), split_count(height, part_height, overlap))
    positions = [i / (count - 1) for i in range(count)] if count > 1 else [0.5]
    return [crop_box(width, height, size, (position, position)) for position in positions]


@functools.lru_cache
def automatic_size(
    width: int, height: int, sides: tuple[int, int], areas: tuple[int, int], threshold: float, objective: str
) -> tuple[int, int] | None:
    """Return the best (width, height) in multiples of 64 for an image; None if none fits.

    This is the WebUI's auto-sized crop.

    Args:
        sides: minimum and maximum side.
        areas: minimum and maximum width * height.
        threshold: maximum error; the error is the fraction of the image that a crop to the size cuts off.
        objective: "area" maximizes the area and breaks ties by the error; "error" minimizes the error and breaks ties
            by the area.
    """
    steps = range(-(-sides[0] // STEP) * STEP, sides[1] + 1, STEP)
    fitting = []
    for size in ((w, h) for w in steps for h in steps if areas[0] <= w * h <= areas[1]):
        kept = kept_share(width, height, size)
        if 1 - kept <= threshold:
            area = size[0] * size[1]
            fitting.append(((area, kept) if objective == "area" else (kept, area), size))
    return max(fitting)[1] if fitting else None


def fit_box(width: int, height: int, size: tuple[int, int]) -> Box:
    """Return the smallest box with the aspect ratio of `size` that contains the whole image, centered.

    If the two shapes differ by less than 1%, it is the image itself, to be stretched.
    """
    if kept_share(width, height, size) >= SAME_ASPECT:
        return 0, 0, width, height
    scale = max(width / size[0], height / size[1])
    x, y = (size[0] * scale - width) / 2, (size[1] * scale - height) / 2
    return -x, -y, width + x, height + y


def area_shares(width: int, height: int, box: Box) -> tuple[float, float]:
    """Return the fraction of an image that lies in a box, and the fraction of the box that the image fills."""
    left, top, right, bottom = inside(box, width, height)
    common = (right - left) * (bottom - top)
    return common / (width * height), common / ((box[2] - box[0]) * (box[3] - box[1]))


def inside(box: Box, width: int, height: int) -> Box:
    """Return the part of a box that lies in an image."""
    return max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3])


def enlargement(box: Box, size: tuple[int, int]) -> float:
    """Return the factor by which a box is enlarged to reach `size`; below 1 it is reduced."""
    return max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))


def is_small(factor: float, limit: float) -> bool:
    """Return whether an image that is enlarged by `factor` counts as too small."""
    return factor > limit * 1.005  # less is invisible
