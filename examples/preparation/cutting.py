"""Prepare one image: read it, choose its crop or parts, and write them as PNG files."""

import argparse
import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from examples.preparation.geometry import automatic_size, enlargement, is_oversized, split_boxes
from examples.preparation.record import output_stems
from hypernet.data.image_io import Box, crop_box, on_background, read_image
from hypernet.data.image_source import ImageSource
from hypernet.data.near_duplicates import thumbnail
from hypernet.utils.atomic_files import atomic_write

MAX_PARTS = 100  # of one image; more would be meaningless strips
COMPRESSION = 3  # of PNG; the usual 6 takes most of the time


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to prepare."""

    row: int  # in the image source
    source: str  # path relative to SRC
    base: str  # path of its outputs relative to DST, without suffix
    stamp: str  # file size and modification time
    text: str | None  # written caption, if it has one
    name_text: str  # caption made from the file name


@dataclasses.dataclass
class Result:
    """A prepared image: its entry in the record, or the reason it was skipped."""

    job: Job
    entry: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""
    parts: list[Image.Image] = dataclasses.field(default_factory=list)  # RGB, if they are to be captioned


@dataclasses.dataclass(frozen=True)
class Appearance:
    """What duplicates are found by: a thumbnail as `hypernet.data.near_duplicates` makes it, and the image's size."""

    thumbnail: np.ndarray
    width: int
    height: int


def choose_crop(image: Image.Image, args: argparse.Namespace) -> tuple[tuple[int, int], list[Box]]:
    """Choose the output size of an RGB image, and the boxes to crop to it.

    Raises:
        ValueError: with the reason, if the image is to be skipped.
    """
    width, height = image.size
    size = args.size
    if args.split and is_oversized(width, height, size, args.split_threshold):
        boxes = split_boxes(width, height, size, args.overlap_ratio)
        if len(boxes) > MAX_PARTS:
            raise ValueError(f"{width}x{height} would be split into {len(boxes)} images, more than {MAX_PARTS}")
        return size, boxes
    if args.auto_size:
        sides, areas = (args.min_side, args.max_side), (args.min_area, args.max_area)
        size = automatic_size(width, height, sides, areas, args.size_threshold, args.objective)
        if size is None:
            raise ValueError(f"{width}x{height} has no automatic size within --size_threshold {args.size_threshold}")
    return size, [args.focus.box(image, size) if args.focus else crop_box(width, height, size)]


def prepare_image(job: Job, source: ImageSource, args: argparse.Namespace, keep_parts: bool) -> Result:
    """Write the PNG files of an image, except those that already exist."""
    try:
        image = read_image(source.read(job.row))
        opaque = on_background(image, args.background)
        size, boxes = choose_crop(opaque, args)
        factor = max(enlargement(box, size) for box in boxes)
        if args.skip_small and is_small(factor, args.max_enlarged):
            raise ValueError(f"{image.width}x{image.height} is too small; it would be {describe_enlargement(factor)}")
    except ValueError as error:
        return Result(job, reason=str(error))
    stems = output_stems(job.base, len(boxes), args.flip)
    parts = [crop(image if args.keep_alpha else opaque, size, box) for box in boxes]
    outputs = [output for part in parts for output in ([part, mirrored(part)] if args.flip else [part])]
    for stem, output in zip(stems, outputs):
        write_png(args.DST / f"{stem}.png", output)
    entry = {"source": job.source, "base": job.base, "stamp": job.stamp, "width": image.width, "height": image.height}
    entry |= {"size": size, "boxes": boxes, "thumbnail": base64.b64encode(thumbnail(opaque).tobytes()).decode()}
    entry["files"] = [f"{stem}.png" for stem in stems]
    return Result(job, entry, parts=[on_background(part, args.background) for part in parts] if keep_parts else [])


def is_small(factor: float, limit: float) -> bool:
    """Return whether an image that is enlarged by `factor` counts as too small."""
    return factor > limit * 1.005  # less is invisible


def describe_enlargement(factor: float) -> str:
    """Return "enlarged N times", with enough digits that an image that is too small never shows "1 times"."""
    return f"enlarged {factor:.3g} times"


def crop(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Return the part `box` resized to (width, height) = `size`, without the file's metadata."""
    part = image.resize(size, Image.Resampling.LANCZOS, box=box)
    part.info = {}  # an ICC profile or a transparent color no longer applies
    return part


def mirrored(image: Image.Image) -> Image.Image:
    """Return the image mirrored left to right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def write_png(path: Path, image: Image.Image) -> None:
    """Write a PNG file atomically, unless the file exists."""
    if not path.exists():
        with atomic_write(path) as temporary:
            image.save(temporary, "PNG", compress_level=COMPRESSION)


def read_appearance(job: Job, source: ImageSource, background: str) -> Appearance | None:
    """Return what an image looks like, or None if it cannot be read."""
    try:
        image = on_background(read_image(source.read(job.row)), background)
    except ValueError:
        return None
    return Appearance(thumbnail(image), image.width, image.height)


def recorded_appearance(entry: dict[str, Any]) -> Appearance:
    """Return what a prepared image looks like, from its entry in the record."""
    return Appearance(np.frombuffer(base64.b64decode(entry["thumbnail"]), np.uint8), entry["width"], entry["height"])
