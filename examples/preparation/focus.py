"""Where prepare.py --focus crops: at the part of an image with the most faces, edges and detail.

The default weights are those of the AUTOMATIC1111 WebUI's focal point crop, which averages points and sums no maps.
"""

import dataclasses
import os
import threading
from typing import Any

import numpy as np
from PIL import Image

from hypernet.data.image_io import Box, crop_box

MAP_SIDE = 96  # longer side of a map, in pixels
LEVELS, WINDOW = 16, 9  # gray levels, and the side of the square in which their entropy is measured
FACE_SIDE = 640  # longer side of the image given to the face detector
NEARLY_BEST = 0.998  # windows with this fraction of the highest sum count as equally good
CASCADE = "haarcascade_frontalface_default.xml"
NO_FACES = 'faces are ignored without OpenCV: pip install "opencv-python-headless<5"; edges and detail still count'


@dataclasses.dataclass(frozen=True)
class Focus:
    """The weight of each map. Maps are normalized, so only the ratios matter."""

    face: float = 0.9
    edges: float = 0.5
    entropy: float = 0.15

    def choose(self, image: Image.Image, size: tuple[int, int]) -> tuple[Box, float]:
        """Return (left, top, right, bottom) of the best crop of an RGB image, and the fraction of the map it keeps.

        Args:
            size: any (width, height) with the crop's aspect ratio.
        """
        return best_box(self.map(image), image.width, image.height, size)

    def map(self, image: Image.Image) -> np.ndarray:
        """Return how much each place of an RGB image matters: (height, width), the longer side at most 96."""
        small = shrink(image, MAP_SIDE)
        gray = np.asarray(small, np.float32)
        total = self.edges * normalized(above_median(edges(gray) ** 2))
        total += self.entropy * normalized(above_median(entropy(gray)))
        if self.face:
            total += self.face * normalized(faces(image, small.size))
        return total


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """Return the image in grayscale, its longer side at most `longest` pixels."""
    scale = min(1, longest / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    return image.convert("L").resize((width, height), Image.Resampling.BOX)


def above_median(values: np.ndarray) -> np.ndarray:
    """Return by how much values exceed the median: grain or a pattern all over the image does not locate a subject."""
    return (values - np.median(values)).clip(0)


def normalized(values: np.ndarray) -> np.ndarray:
    """Divide by the sum, unless it is zero."""
    total = values.sum()
    return values / total if total > 0 else values


def edges(gray: np.ndarray) -> np.ndarray:
    """Return the magnitude of the gradient, (height, width)."""
    padded = np.pad(gray, 1, mode="edge")
    return np.hypot(padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1])


def entropy(gray: np.ndarray) -> np.ndarray:
    """Return the entropy in bits of the 9 x 9 pixels around each pixel, (height, width); `gray` is 0 to 255."""
    levels = (gray * (LEVELS / 256)).astype(int)
    total = np.zeros(gray.shape, np.float64)
    for level in np.unique(levels):
        share = _window_means(levels == level)
        total -= share * np.log2(share, where=share > 0, out=np.zeros_like(share))
    return total.clip(0)


def _window_means(values: np.ndarray) -> np.ndarray:
    """Return the mean of the WINDOW x WINDOW pixels around each pixel; the border is repeated outwards."""
    padded = np.pad(values.astype(np.float64), WINDOW // 2, mode="edge")
    sums = np.pad(padded.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    around = sums[WINDOW:, WINDOW:] - sums[:-WINDOW, WINDOW:] - sums[WINDOW:, :-WINDOW] + sums[:-WINDOW, :-WINDOW]
    return (around / WINDOW**2).round(9)  # differences of cumulative sums are never exactly 0


def best_box(values: np.ndarray, width: int, height: int, size: tuple[int, int]) -> tuple[Box, float]:
    """Return the largest box with the aspect ratio of `size` that holds the greatest sum of a map, and that sum.

    The sum is a fraction of the whole map. Among boxes within 0.2% of the greatest sum, the one nearest to the map's
    center of mass wins: a subject that fits is not pushed to the edge.
    """
    _, _, part_width, part_height = crop_box(width, height, size, (0, 0))
    x, x_kept = _best_position(values.sum(0), part_width / width)
    y, y_kept = _best_position(values.sum(1), part_height / height)
    return crop_box(width, height, size, (x, y)), x_kept * y_kept  # one of them is 1


def _best_position(profile: np.ndarray, share: float) -> tuple[float, float]:
    """Return where a window that covers `share` of the profile lies, from 0 (at the start) to 1, and its sum.

    The sum is a fraction of the whole profile, or `share` if that is all zero.
    """
    total, length = profile.sum(), len(profile)
    window = share * length
    slack = length - window
    if slack < 1e-6:
        return 0.5, 1.0
    if total <= 0:
        return 0.5, share
    starts = np.linspace(0, slack, int(4 * slack) + 2)
    cumulative = np.concatenate([[0], profile.cumsum()])
    sums = np.interp(starts + window, range(length + 1), cumulative) - np.interp(starts, range(length + 1), cumulative)
    center = (profile * (np.arange(length) + 0.5)).sum() / total
    good = np.flatnonzero(sums >= NEARLY_BEST * sums.max())
    best = good[np.abs(starts[good] + window / 2 - center).argmin()]
    return float(starts[best] / slack), float(sums[best] / total)


# --- Faces


_detectors = threading.local()  # OpenCV's detector is not thread-safe


def can_find_faces() -> bool:
    """Return whether OpenCV and its face detector are installed."""
    return _detector() is not None


def faces(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Return a map, (height, width), for `size` = (width, height): 1 where OpenCV detects a face, else 0."""
    found = np.zeros(size[::-1])
    detector = _detector()
    if detector is None:
        return found
    gray = shrink(image, FACE_SIDE)
    x_scale, y_scale = size[0] / gray.width, size[1] / gray.height
    smallest = max(20, min(gray.size) // 16)
    for x, y, w, h in detector.detectMultiScale(np.asarray(gray), 1.1, 7, minSize=(smallest, smallest)):
        rows = slice(int(y * y_scale), int(np.ceil((y + h) * y_scale)))
        columns = slice(int(x * x_scale), int(np.ceil((x + w) * x_scale)))
        found[rows, columns] = 1
    return found


def _detector() -> Any:
    """Return this thread's detector, or None."""
    if not hasattr(_detectors, "own"):
        _detectors.own = _load_detector()
    return _detectors.own


def _load_detector() -> Any:
    try:
        from cv2 import CascadeClassifier, data
    except ImportError:  # not installed, or OpenCV 5, which has no such detector
        return None
    detector = CascadeClassifier(os.path.join(data.haarcascades, CASCADE))
    return None if detector.empty() else detector
