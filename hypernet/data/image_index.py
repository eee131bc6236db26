"""Which images of a source can be used, and at which size each is trained."""

import collections
import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import datasets

from hypernet.data.arrow_cache import CACHE_VERSION, RowCache, cache_folder
from hypernet.utils.errors import UserError
from hypernet.data.image_io import inspect_picture
from hypernet.data.buckets import size_of
from hypernet.data.image_source import Source


@dataclasses.dataclass(slots=True)
class Picture:
    """An image that can be used: its row in the source, the hash of its bytes, its sides, and those it is trained at."""

    row: int
    sha256: str
    width: int
    height: int
    has_alpha: bool
    size: tuple[int, int]


def find_pictures(source: Source, config, multiple: int) -> tuple[list[Picture], list[str]]:
    """All images that can be used, in the source's order, and a line for each other one that says why it cannot.

    An image that was inspected before is not read again.

    Raises:
        UserError: if none can be used.
    """
    columns = {"sha256": "string", "width": "int32", "height": "int32", "has_alpha": "bool"}
    features = {name: datasets.Value(kind) for name, kind in columns.items()}
    cache = RowCache(cache_folder(config.cache_dir) / f"pictures-{CACHE_VERSION}", features)
    reasons = {}  # they are not kept: what was wrong may have been mended

    def inspect(item):
        stamp, row = item
        try:
            return {"key": stamp, **inspect_picture(source.read(row))}
        except ValueError as error:
            reasons[row] = str(error)
            return None

    stamps = source.stamps()
    wanted = {stamp: row for row, stamp in enumerate(stamps)}
    cache.fill(wanted, lambda items: in_threads(inspect, items), "Inspecting images", "images")
    positions = cache.positions(stamps)
    rows = [row for row, position in enumerate(positions) if position >= 0]
    pictures = []
    for row, image in zip(rows, cache.rows(positions[rows], list(columns))):
        try:
            pictures.append(Picture(row=row, size=size_of(image["width"], image["height"], config, multiple), **image))
        except ValueError as error:
            reasons[row] = str(error)
    problems = source.problems + [f"{source.name(row)}: {reasons[row]}" for row in sorted(reasons)]
    if not pictures:
        raise UserError(f"{source.option}: none of its {len(source)} images can be used; {problems[0]}")
    return pictures, problems


def in_threads(function, items):
    """`function` of each item, in order, a few ahead of who takes them. (Decoding images lets other threads run.)"""
    workers = min(8, os.cpu_count() or 1)
    pool, ahead = ThreadPoolExecutor(workers), collections.deque()
    try:
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
