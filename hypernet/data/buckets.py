"""Choose the size at which an image is trained: the same for all, the nearest aspect bucket, or its own."""

import collections
import functools
from collections.abc import Iterable, Sequence

from hypernet.config import TrainingConfig

BUCKET_STEP = 64  # sides of aspect buckets are multiples of this

Size = tuple[int, int]  # (width, height)


@functools.lru_cache
def aspect_buckets(width: int, height: int) -> list[Size]:
    """Return sizes of about width * height pixels, never more, with sides that are multiples of 64.

    Sides range from half to twice the mean side, so aspect ratios from 1:4 to 4:1. Each width comes with the largest
    height that fits.

    Raises:
        ValueError: if there is no such size.
    """
    area, side = width * height, (width * height) ** 0.5
    sides = range(BUCKET_STEP, int(2 * side) + 1, BUCKET_STEP)
    fitting = {(w, int(min(area // w, 2 * side)) // BUCKET_STEP * BUCKET_STEP) for w in sides}
    fitting |= {(h, w) for w, h in fitting}
    buckets = sorted(size for size in fitting if min(size) >= max(BUCKET_STEP, side / 2))
    if not buckets:
        raise ValueError(f"{width}x{height} has no aspect buckets: their sides are multiples of {BUCKET_STEP}")
    return buckets


def kept_share(width: int, height: int, size: Size) -> float:
    """Return the fraction of an image that is left when it is scaled to cover `size` and cropped to it."""
    ratio = (width * size[1]) / (height * size[0])
    return min(ratio, 1 / ratio)


def nearest_bucket(width: int, height: int, buckets: Iterable[Size]) -> Size:
    """Return the bucket that crops off the least of an image; the largest in case of a tie."""
    return max(buckets, key=lambda size: (round(kept_share(width, height, size), 9), size[0] * size[1], size))


def largest_bucket_within(width: int, height: int, max_pixels: int) -> Size | None:
    """Return a size for an image smaller than its bucket, so that it need not be enlarged; None if there is none.

    The candidates fit into the image, have at most `max_pixels` pixels and an aspect ratio from 1:4 to 4:1. The result
    maximizes pixels times the square of the share kept.
    """
    steps = [range(BUCKET_STEP, min(side, 4 * min(width, height)) + 1, BUCKET_STEP) for side in (width, height)]
    sizes = [(w, h) for w in steps[0] for h in steps[1] if w * h <= max_pixels and max(w, h) <= 4 * min(w, h)]
    return max(sizes, key=lambda size: kept_share(width, height, size) ** 2 * size[0] * size[1], default=None)


def training_size(width: int, height: int, config: TrainingConfig, multiple: int) -> Size:
    """Return the size at which an image of `width` x `height` pixels is trained.

    Args:
        multiple: the model needs image sides that are multiples of this.

    Raises:
        ValueError: if the image is too small for the mode.
    """
    if config.varsize:
        own = width // multiple * multiple, height // multiple * multiple
        if 0 in own:
            raise ValueError(f"{width}x{height} is too small; each side needs {multiple} pixels")
        return own
    if not config.aspect_buckets:
        return config.size
    size = _choose_bucket(width, height, config.size, config.bucket_upscale)
    if size is None:
        hint = f"each side needs {BUCKET_STEP} pixels (or add --bucket_upscale)"
        raise ValueError(f"{width}x{height} is too small; {hint}")
    return size


@functools.lru_cache(maxsize=2**16)  # many images of a large folder have the same size
def _choose_bucket(width: int, height: int, size: Size, upscale: bool) -> Size | None:
    bucket = nearest_bucket(width, height, aspect_buckets(*size))
    if upscale or (bucket[0] <= width and bucket[1] <= height):
        return bucket
    return largest_bucket_within(width, height, size[0] * size[1])


def size_table(
    sizes: Sequence[Size], batch_size: int, repeats: Sequence[int] = (), rounds: int = 1, max_rows: int = 16
) -> str:
    """Return a plain-text table of the images and the batches per epoch of each size.

    Args:
        repeats: how often each image counts in a round; by default once.
        rounds: the number of rounds per epoch.
    """
    counts, visits = collections.Counter(sizes).most_common(), collections.Counter[Size]()
    for size, times in zip(sizes, repeats or [1] * len(sizes)):
        visits[size] += times
    batches = {size: rounds * -(-count // batch_size) for size, count in visits.items()}
    lines = [f"{'size':>12}{'images':>9}{'batches':>9}"]
    for (width, height), count in counts[:max_rows]:
        lines.append(f"{f'{width}x{height}':>12}{count:>9}{batches[width, height]:>9}")
    if rest := counts[max_rows:]:
        images, more = sum(count for _, count in rest), sum(batches[size] for size, _ in rest)
        lines.append(f"{f'{len(rest)} more':>12}{images:>9}{more:>9}")
    return "\n".join(lines)
