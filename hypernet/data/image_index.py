"""Which images of a source can be used, and at which size each is trained."""

import dataclasses

import datasets

from hypernet.data.arrow_cache import CACHE_VERSION, RowCache, cache_folder
from hypernet.data.buckets import training_size
from hypernet.data.image_io import inspect_image, map_in_threads
from hypernet.data.image_source import ImageSource
from hypernet.utils.errors import UserError


@dataclasses.dataclass(slots=True)
class ImageRecord:
    """An image that can be used: its row in the source, the hash of its bytes, its sides, and those it is trained at."""

    row: int
    sha256: str
    width: int
    height: int
    has_alpha: bool
    size: tuple[int, int]


def index_images(source: ImageSource, config, multiple: int) -> tuple[list[ImageRecord], list[str]]:
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
            return {"key": stamp, **inspect_image(source.read(row))}
        except ValueError as error:
            reasons[row] = str(error)
            return None

    stamps = source.stamps()
    wanted = {stamp: row for row, stamp in enumerate(stamps)}
    cache.fill(wanted, lambda items: map_in_threads(inspect, items), "Inspecting images", "images")
    positions = cache.positions(stamps)
    rows = [row for row, position in enumerate(positions) if position >= 0]
    pictures = []
    for row, image in zip(rows, cache.rows(positions[rows], list(columns))):
        try:
            pictures.append(ImageRecord(row=row, size=training_size(image["width"], image["height"], config, multiple), **image))
        except ValueError as error:
            reasons[row] = str(error)
    problems = source.problems + [f"{source.name(row)}: {reasons[row]}" for row in sorted(reasons)]
    if not pictures:
        raise UserError(f"{source.option}: none of its {len(source)} images can be used; {problems[0]}")
    return pictures, problems


