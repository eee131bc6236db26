"""One picture for prepare.py: read it, choose what is taken, write that as PNG files."""

import base64
import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image

from examples.preparation.geometry import automatic_size, enlargement, is_oversized, split_boxes
from examples.preparation.record import output_names
from hypernet.data.image_io import crop_box, on_background, read_image
from hypernet.data.image_source import ImageSource
from hypernet.data.near_duplicates import thumbnail
from hypernet.utils.atomic_files import atomic_write

MOST_PARTS = 100  # of one picture; more than that is a strip, and no picture
COMPRESSION = 3  # of PNG: less than the usual 6, for it takes most of the time


@dataclasses.dataclass(frozen=True)
class Job:
    """A picture to prepare: its row in the source, its path there, and the base of its outputs' paths, without ending."""

    row: int
    source: str
    base: str
    stamp: str
    text: str | None  # its caption, if there is one beside the file's name
    name_text: str  # the file's name as a caption


@dataclasses.dataclass
class Done:
    """What became of it: a line of the record; the reason if it was left out; its parts, if they are to be captioned."""

    job: Job
    entry: dict = dataclasses.field(default_factory=dict)
    reason: str = ""
    parts: list[Image.Image] = dataclasses.field(default_factory=list)


def choose_cut(image: Image.Image, args) -> tuple[tuple[int, int], list[tuple[float, ...]]]:
    """(size, boxes): what is taken of an RGB picture, and the size that each box gets.

    Raises:
        ValueError: with the reason, if it is to be left out.
    """
    width, height = image.size
    if args.split and is_oversized(width, height, args.size, args.split_threshold):
        boxes = split_boxes(width, height, args.size, args.overlap_ratio)
        if len(boxes) > MOST_PARTS:
            raise ValueError(f"{width}x{height} would become {len(boxes)} pictures, more than {MOST_PARTS}")
        return args.size, boxes
    size = args.size
    if args.auto_size:
        sides, areas = (args.min_side, args.max_side), (args.min_area, args.max_area)
        size = automatic_size(width, height, sides, areas, args.size_threshold, args.objective)
        if size is None:
            raise ValueError(f"{width}x{height} has no automatic size within --size_threshold {args.size_threshold}")
    return size, [args.focus.box(image, size) if args.focus else crop_box(width, height, size)]


def prepare_picture(job: Job, source: ImageSource, args, keep_parts: bool) -> Done:
    """Write the pictures that become of one, but for those that are there already."""
    try:
        image = read_image(source.read(job.row))
        opaque = on_background(image, args.background)
        size, boxes = choose_cut(opaque, args)
        check_enlarged(image, size, boxes, args)
    except ValueError as error:
        return Done(job, reason=str(error))
    stems = output_names(job.base, len(boxes), args.flip)
    parts = [cut(image if args.keep_alpha else opaque, size, box) for box in boxes]
    shown = [view for part in parts for view in ([part, mirrored(part)] if args.flip else [part])]
    for stem, view in zip(stems, shown):
        write_png(args.DST / f"{stem}.png", view)
    entry = {"source": job.source, "base": job.base, "stamp": job.stamp, "width": image.width, "height": image.height}
    entry |= {"size": size, "boxes": boxes, "thumbnail": base64.b64encode(thumbnail(opaque)).decode()}
    entry["files"] = [f"{stem}.png" for stem in stems]
    return Done(job, entry, parts=[on_background(part, args.background) for part in parts] if keep_parts else [])


def check_enlarged(image, size, boxes, args):
    """Raises: ValueError if it is too small, and those are to be left out."""
    times = max(enlargement(box, size) for box in boxes)
    if args.skip_small and is_small(times, args.max_enlarged):
        raise ValueError(f"{image.width}x{image.height} is too small, it would be enlarged {times:.2g} times")


def is_small(times: float, most: float) -> bool:
    return times > most * (1 + 1e-6)  # but for rounding


def cut(image: Image.Image, size: tuple[int, int], box) -> Image.Image:
    """The part `box` at `size` = (width, height), without what the file said beside its pixels: it holds no longer."""
    part = image.resize(size, Image.Resampling.LANCZOS, box=box)
    part.info = {}
    return part


def mirrored(image: Image.Image) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def write_png(path: Path, image: Image.Image):
    """Whole or not at all, and never over a file that is there."""
    if not path.exists():
        with atomic_write(path) as temporary:
            image.save(temporary, "PNG", compress_level=COMPRESSION)


def small_view(job: Job, source: ImageSource, background: str) -> tuple[np.ndarray, int, int] | None:
    """(thumbnail, width, height) of a picture; None if it cannot be read."""
    try:
        image = on_background(read_image(source.read(job.row)), background)
    except ValueError:
        return None
    return thumbnail(image), image.width, image.height


def recorded_view(entry: dict) -> tuple[np.ndarray, int, int]:
    """The same, of a picture that is done."""
    small = np.frombuffer(base64.b64decode(entry["thumbnail"]), np.uint8)
    return small, entry["width"], entry["height"]
