"""What size each image is trained at: one for all, the nearest aspect bucket, or its own."""

import collections
import functools

BUCKET_STEP = 64  # sides of aspect buckets are multiples of this


@functools.lru_cache
def aspect_buckets(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes of about width * height pixels, never more, with sides that are multiples of 64.

    Sides go from half to twice the mean side, so aspects from 1:4 to 4:1; for each width, the largest height.

    Raises:
        ValueError: if no such size exists.
    """
    area, side = width * height, (width * height) ** 0.5
    sides = range(BUCKET_STEP, int(2 * side) + 1, BUCKET_STEP)
    fitting = {(w, int(min(area // w, 2 * side)) // BUCKET_STEP * BUCKET_STEP) for w in sides}
    fitting |= {(h, w) for w, h in fitting}
    buckets = sorted(size for size in fitting if min(size) >= max(BUCKET_STEP, side / 2))
    if not buckets:
        raise ValueError(f"{width}x{height} has no aspect buckets: their sides are multiples of {BUCKET_STEP}")
    return buckets


def kept_share(width: int, height: int, size: tuple[int, int]) -> float:
    """The share of a picture that is left of it when it is scaled to cover `size`."""
    ratio = (width * size[1]) / (height * size[0])
    return min(ratio, 1 / ratio)


def nearest_bucket(width: int, height: int, buckets) -> tuple[int, int]:
    """The bucket of which a picture loses the smallest part; of equal ones the larger."""
    return max(buckets, key=lambda size: (round(kept_share(width, height, size), 9), size[0] * size[1], size))


def largest_bucket_within(width: int, height: int, largest: int) -> tuple[int, int] | None:
    """The size for a picture that is smaller than its bucket: within the picture, at most `largest` pixels, aspect up to 4:1.

    Of those the one with the most pixels, in which a lost part of the picture counts twice; None if there is none.
    """
    steps = [range(BUCKET_STEP, min(side, 4 * min(width, height)) + 1, BUCKET_STEP) for side in (width, height)]
    sizes = [(w, h) for w in steps[0] for h in steps[1] if w * h <= largest and max(w, h) <= 4 * min(w, h)]
    return max(sizes, key=lambda size: kept_share(width, height, size) ** 2 * size[0] * size[1], default=None)


def training_size(width: int, height: int, config, multiple: int) -> tuple[int, int]:
    """(width, height) at which an image of `width` x `height` is trained.

    Raises:
        ValueError: with the reason, if it is too small for the mode.
    """
    if config.varsize:
        size = width // multiple * multiple, height // multiple * multiple
        if 0 in size:
            raise ValueError(f"{width}x{height} is too small; each side needs {multiple} pixels")
        return size
    if not config.aspect_buckets:
        return config.size
    size = nearest_bucket(width, height, aspect_buckets(*config.size))
    if config.bucket_upscale or (size[0] <= width and size[1] <= height):
        return size
    size = largest_bucket_within(width, height, config.size[0] * config.size[1])
    if size is None:
        raise ValueError(
            f"{width}x{height} is too small; each side needs {BUCKET_STEP} pixels (or add --bucket_upscale)"
        )
    return size


def size_table(sizes, batch_size: int, most=16) -> str:
    """How many images and batches per epoch each size has, as a table in plain text."""
    counts = collections.Counter(sizes).most_common()
    lines = [f"{'size':>12}{'images':>9}{'batches':>9}"]
    for (width, height), count in counts[:most]:
        lines.append(f"{f'{width}x{height}':>12}{count:>9}{-(-count // batch_size):>9}")
    if len(counts) > most:
        images = sum(count for _, count in counts[most:])
        batches = sum(-(-count // batch_size) for _, count in counts[most:])
        lines.append(f"{f'{len(counts) - most} more':>12}{images:>9}{batches:>9}")
    return "\n".join(lines)
