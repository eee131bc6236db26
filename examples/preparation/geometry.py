"""Which parts of a picture prepare.py takes, and at which size: pure functions of its width and height, in pixels.

The rules are those of the AUTOMATIC1111 WebUI's Preprocess tab (its textual_inversion/preprocess.py), where it has one; what
differs is said at the function. A box is (left, top, right, bottom) in the picture's own pixels, with fractions.
"""

import functools
import math

from hypernet.data.buckets import kept_share
from hypernet.data.image_io import crop_box

STEP = 64  # sides of automatic sizes are multiples of this


def is_oversized(width: int, height: int, size: tuple[int, int], threshold: float) -> bool:
    """Whether so little would be left of a picture by a crop to the aspect of `size` that it is split instead.

    The WebUI compares the picture's aspect with the wanted one, shorter side by longer one, and splits from the threshold
    on downwards. Where `size` is no square it takes a picture's longer side for the one to be cut, which need not be; here
    what a crop leaves is compared, which is the same for a square.
    """
    return kept_share(width, height, size) <= threshold and kept_share(width, height, size) < 1


def split_count(length: float, side: float, overlap: float) -> int:
    """How many parts of `side` pixels cover `length` with at least the share `overlap` of each in common with the next.

    The WebUI's ceil((length - side * overlap) / (side * (1 - overlap))).
    """
    return math.ceil((length - side * overlap) / (side * (1 - overlap)) - 1e-9)  # but for rounding


def split_boxes(width: int, height: int, size: tuple[int, int], overlap: float) -> list[tuple[float, ...]]:
    """The parts of a picture along the side that a crop would cut: the first at one end, the last at the other, at equal
    distances, each the largest of the aspect of `size`. (The WebUI's, without its rounding to whole pixels.)"""
    _, _, part_width, part_height = crop_box(width, height, size, (0, 0))
    count = max(split_count(width, part_width, overlap), split_count(height, part_height, overlap))
    boxes = []
    for i in range(count):
        place = i / (count - 1) if count > 1 else 0.5
        boxes.append(crop_box(width, height, size, (place, place)))
    return boxes


@functools.lru_cache
def automatic_size(
    width: int, height: int, sides: tuple[int, int], areas: tuple[int, int], threshold: float, objective: str
) -> tuple[int, int] | None:
    """The WebUI's auto-sized crop: of all (width, height) in multiples of 64 the best one for a picture; None if none fits.

    Args:
        sides: the least and the greatest side.
        areas: the least and the greatest width * height.
        threshold: the greatest error, which is the share of the picture that a crop to that size cuts off.
        objective: "area", the greatest area, of equal ones that of least error; or "error", the other way about.
    """
    steps = range(-(-sides[0] // STEP) * STEP, sides[1] + 1, STEP)
    fitting = []
    for size in ((w, h) for w in steps for h in steps if areas[0] <= w * h <= areas[1]):
        kept = kept_share(width, height, size)
        if 1 - kept <= threshold:
            area = size[0] * size[1]
            fitting.append(((area, kept) if objective == "area" else (kept, area), size))
    return max(fitting)[1] if fitting else None


def enlargement(box: tuple[float, ...], size: tuple[int, int]) -> float:
    """How many times larger a box becomes at `size`; below 1 it becomes smaller."""
    return max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
