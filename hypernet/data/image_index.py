"""Find out which images of a source can be used, and at which size each is trained."""

import dataclasses
import typing

import datasets

from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import CACHE_VERSION, RowCache, cache_folder
from hypernet.data.buckets import training_size
from hypernet.data.image_io import inspect_image, map_in_threads
from hypernet.data.image_source import ImageSource
from hypernet.data.processes import ALONE, Processes
from hypernet.utils.errors import UserError, counted


@dataclasses.dataclass(slots=True)
class ImageRecord:
    """A usable image."""

    row: int  # in its source
    sha256: str  # of the file
    width: int
    height: int
    has_alpha: bool
    size: tuple[int, int]  # (width, height) at which it is trained
    repeats: int = 1  # how often it counts per epoch


def index_images(
    source: ImageSource, config: TrainingConfig, multiple: int, processes: Processes = ALONE
) -> tuple[list[ImageRecord], list[str]]:
    """Inspect all images. The findings are cached, so that an unchanged image is read only once.

    Args:
        multiple: the model needs image sides that are multiples of this.
        processes: those that share this work. Each calls this, and gets the same result.

    Returns:
        The usable images in the source's order, and a line for each of the others that says why it cannot be used.

    Raises:
        UserError: if none can be used.
    """
    columns = {"sha256": "string", "width": "int32", "height": "int32", "has_alpha": "bool"}
    features = {name: datasets.Value(kind) for name, kind in columns.items()}
    cache = RowCache(cache_folder(config.cache_dir) / f"pictures-{CACHE_VERSION}", features, processes)
    unreadable: dict[str, str] = {}  # stamp -> reason; not cached, since the problem may be fixed by the next time

    def inspect(item: tuple[str, int]) -> dict[str, typing.Any] | None:
        stamp, row = item
        try:
            return {"key": stamp, **inspect_image(source.read(row))}
        except ValueError as error:
            unreadable[stamp] = str(error)
            return None

    stamps = source.stamps()
    wanted = {stamp: row for row, stamp in enumerate(stamps)}
    cache.fill(wanted, lambda items: map_in_threads(inspect, items), "Inspecting images", "images")
    for others in processes.gather(unreadable):
        unreadable |= others
    reasons = {row: unreadable[stamp] for row, stamp in enumerate(stamps) if stamp in unreadable}
    positions = cache.positions(stamps)
    rows = [row for row, position in enumerate(positions) if position >= 0]
    records = []
    for row, image in zip(rows, cache.rows(positions[rows], list(columns))):
        try:
            size = training_size(image["width"], image["height"], config, multiple)
            repeats = source.repeats[row] if source.repeats else 1
            records.append(ImageRecord(row=row, size=size, repeats=repeats, **image))
        except ValueError as error:
            reasons[row] = str(error)
    problems = source.problems + [f"{source.name(row)}: {reasons[row]}" for row in sorted(reasons)]
    if not records:
        raise UserError(f"{source.option}: it has {counted(len(source), 'image')} but none can be used; {problems[0]}")
    return records, problems
