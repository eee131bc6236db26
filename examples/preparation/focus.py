"""Where prepare.py crops with --focus: at the part of a picture with the most faces, edges and detail.

The weights are those of the AUTOMATIC1111 WebUI's focal point crop; its code averages points, this one sums maps.
"""

import dataclasses
import os
import threading

import numpy as np
from PIL import Image

from hypernet.data.image_io import crop_box

MAP = 96  # pixels of a map's longer side
LEVELS, WINDOW = 16, 9  # greys that are told apart, and the side in pixels of the field in which they are counted
FACES = 640  # pixels of the longer side of the picture in which faces are looked for
NEARLY = 0.998  # windows with so much of the best one's sum are as good
CASCADE = "haarcascade_frontalface_default.xml"
NO_FACES = 'faces are not looked for: pip install "opencv-python-headless<5" adds that; edges and detail are'


@dataclasses.dataclass(frozen=True)
class Focus:
    """How much each kind of map counts. They are normalised before, so only the proportions matter."""

    face: float = 0.9
    edges: float = 0.5
    entropy: float = 0.15

    def box(self, image: Image.Image, size: tuple[int, int]) -> tuple[float, ...]:
        """(left, top, right, bottom) of the largest part of an RGB picture with the aspect of `size` that has most of
        what counts."""
        return best_box(self.map(image), image.width, image.height, size)

    def map(self, image: Image.Image) -> np.ndarray:
        """How much every place counts: (height, width) of at most 96, each part of it summing up to its weight."""
        small = shrink(image, MAP)
        grey = np.asarray(small, np.float32)
        total = self.edges * normalised(standing_out(edges(grey) ** 2))
        total += self.entropy * normalised(standing_out(entropy(grey)))
        if self.face:
            total += self.face * normalised(faces(image, small.size))
        return total


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """The picture in grey, its longer side at most so long."""
    scale = min(1, longest / max(image.size))
    sides = [max(1, round(side * scale)) for side in image.size]
    return image.convert("L").resize(sides, Image.Resampling.BOX)


def standing_out(values: np.ndarray) -> np.ndarray:
    """What is above the median: grain and patterns all over a picture say nothing of where its subject is."""
    return (values - np.median(values)).clip(0)


def normalised(values: np.ndarray) -> np.ndarray:
    """Divided by their sum; nothing but zeros stays so."""
    total = values.sum()
    return values / total if total > 0 else values


def edges(grey: np.ndarray) -> np.ndarray:
    """The length of the gradient at each place: (height, width), like `grey`."""
    padded = np.pad(grey, 1, mode="edge")
    return np.hypot(padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1])


def entropy(grey: np.ndarray) -> np.ndarray:
    """The entropy in bits of the greys in the 9 x 9 places around each: (height, width), like `grey` (0 to 255)."""
    levels = (grey * (LEVELS / 256)).astype(int)
    found = np.zeros(grey.shape, np.float64)
    for level in np.unique(levels):
        share = _means_around(levels == level)
        found -= share * np.log2(share, where=share > 0, out=np.zeros_like(share))
    return found.clip(0)


def _means_around(values):
    """The mean of the field of WINDOW x WINDOW around each place; the border is repeated outwards."""
    padded = np.pad(values.astype(np.float64), WINDOW // 2, mode="edge")
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    around = sums[WINDOW:, WINDOW:] - sums[:-WINDOW, WINDOW:] - sums[WINDOW:, :-WINDOW] + sums[:-WINDOW, :-WINDOW]
    return (around / WINDOW**2).round(9)  # of which cumulative sums leave no zeros


def best_box(values: np.ndarray, width: int, height: int, size: tuple[int, int]) -> tuple[float, ...]:
    """The window, as long as the picture on one side, with the greatest sum of a map; of those within 0.2 % of it the one
    nearest to where the map has its centre, so that a subject that fits is not pushed to the rim."""
    rows, columns = (_best_place(values, axis, box, side) for axis, box, side in _windows(width, height, size))
    return crop_box(width, height, size, (columns, rows))


def _windows(width, height, size):
    _, _, part_width, part_height = crop_box(width, height, size, (0, 0))
    return (0, part_height, height), (1, part_width, width)


def _best_place(values, axis, part, side):
    """Where the window lies on one axis, from 0 (at the start) to 1 (at the end)."""
    profile = values.sum(1 - axis)
    total, length = profile.sum(), len(profile)
    window = part / side * length
    slack = length - window
    if total <= 0 or slack < 1e-6:
        return 0.5
    starts = np.linspace(0, slack, int(4 * slack) + 2)
    below = np.concatenate([[0], profile.cumsum()])  # the sum up to each border between places
    sums = np.interp(starts + window, range(length + 1), below) - np.interp(starts, range(length + 1), below)
    centre = (profile * (np.arange(length) + 0.5)).sum() / total
    good = starts[sums >= NEARLY * sums.max()]
    return float(good[np.abs(good + window / 2 - centre).argmin()] / slack)


# --- Faces


_detectors = threading.local()  # OpenCV's are not to be shared among threads


def can_find_faces() -> bool:
    """Whether OpenCV is installed, with its detector."""
    return _detector() is not None


def faces(image: Image.Image, sides: tuple[int, int]) -> np.ndarray:
    """1 where OpenCV's detector sees a face, as (height, width) of `sides`; zeros without OpenCV."""
    found = np.zeros(sides[::-1])
    detector = _detector()
    if detector is None:
        return found
    grey = shrink(image, FACES)
    across, down = sides[0] / grey.width, sides[1] / grey.height
    least = max(20, min(grey.size) // 16)
    for x, y, w, h in detector.detectMultiScale(np.asarray(grey), 1.1, 7, minSize=(least, least)):
        found[int(y * down) : int(np.ceil((y + h) * down)), int(x * across) : int(np.ceil((x + w) * across))] = 1
    return found


def _detector():
    if not hasattr(_detectors, "own"):
        _detectors.own = _load_detector()
    return _detectors.own


def _load_detector():
    try:
        import cv2

        detector = cv2.CascadeClassifier(os.path.join(cv2.data.haarcascades, CASCADE))
    except (ImportError, AttributeError):  # not installed, or OpenCV 5, which comes without it
        return None
    return None if detector.empty() else detector
