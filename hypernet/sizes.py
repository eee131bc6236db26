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


def nearest_bucket(width: int, height: int, buckets) -> tuple[int, int]:
    """The bucket of which a picture, scaled to cover it, loses the smallest part; of equal ones the larger."""

    def kept(size):
        ratio = (width * size[1]) / (height * size[0])
        return min(ratio, 1 / ratio)

    return max(buckets, key=lambda size: (round(kept(size), 9), size[0] * size[1], size))


def floored(width: int, height: int, multiple: int) -> tuple[int, int]:
    return width // multiple * multiple, height // multiple * multiple


def size_of(width: int, height: int, config, multiple: int) -> tuple[int, int]:
    """(width, height) at which an image of `width` x `height` is trained.

    Raises:
        ValueError: with the reason, if it is too small for the mode.
    """
    if config.varsize:
        size, smallest, remedy = floored(width, height, multiple), multiple, ""
    elif config.aspect_buckets:
        size = nearest_bucket(width, height, aspect_buckets(*config.size))
        if config.bucket_upscale or (size[0] <= width and size[1] <= height):
            return size
        size, smallest, remedy = floored(width, height, BUCKET_STEP), BUCKET_STEP, " (or add --bucket_upscale)"
    else:
        return config.size
    if 0 in size:
        raise ValueError(f"{width}x{height} is too small, a side needs {smallest} pixels{remedy}")
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
