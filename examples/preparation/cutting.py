"""Prepare one image: read it, choose its crop or parts, and write them as PNG files."""

import argparse
import base64
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from examples.preparation.geometry import (
    automatic_size,
    enlargement,
    fit_box,
    inside,
    is_oversized,
    is_small,
    split_boxes,
)
from examples.preparation.record import output_stems
from hypernet.data.image_io import Box, crop_box, on_background, read_image
from hypernet.data.image_source import ImageSource
from hypernet.data.near_duplicates import thumbnail
from hypernet.utils.atomic_files import atomic_write

MAX_PARTS = 100  # of one image; more would be meaningless strips
COMPRESSION = 3  # of PNG; the usual 6 takes most of the time
BORDER_SIDE = 64  # pixels per side of the image, to compare border colors for --background auto

Color = tuple[int, ...]  # red, green, blue and perhaps alpha


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


@dataclasses.dataclass
class Crop:
    """The boxes that are cropped from an image, each to an image of `size`."""

    size: tuple[int, int]  # (width, height)
    boxes: list[Box]
    kept: float | None = None  # with --focus: the fraction of faces, edges and detail that is kept


def choose_crop(image: Image.Image, args: argparse.Namespace) -> Crop:
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
        return Crop(size, boxes)
    if args.keep_size:
        return Crop(image.size, [(0, 0, width, height)])
    if args.auto_size:
        sides, areas = (args.min_side, args.max_side), (args.min_area, args.max_area)
        size = automatic_size(width, height, sides, areas, args.size_threshold, args.objective)
        if size is None:
            problem = f"{width}x{height} has no automatic size within --size_threshold {args.size_threshold}"
            raise ValueError(f"{problem}; raise it, or add --split")
    if args.focus:
        box, kept = args.focus.choose(image, size)
        return Crop(size, [box], kept)
    return Crop(size, [(fit_box if args.fit else crop_box)(width, height, size)])


def prepare_image(job: Job, source: ImageSource, args: argparse.Namespace, keep_parts: bool) -> Result:
    """Write the PNG files of an image, except those that already exist."""
    try:
        image = read_image(source.read(job.row))
        opaque = make_opaque(image, args.background)
        chosen = choose_crop(opaque, args)
        size, boxes = chosen.size, chosen.boxes
        factor = max(enlargement(box, size) for box in boxes)
        if args.skip_small and is_small(factor, args.max_enlarged):
            raise ValueError(f"{image.width}x{image.height} is too small; it would be {describe_enlargement(factor)}")
    except ValueError as error:
        return Result(job, reason=str(error))
    stems = output_stems(job.base, len(boxes), args.flip)
    pixels, color = image if args.keep_alpha else opaque, surrounding_color(image, boxes[0], args)
    parts = [crop(pixels, size, box, color) for box in boxes]
    outputs = [output for part in parts for output in ([part, mirrored(part)] if args.flip else [part])]
    for stem, output in zip(stems, outputs):
        write_png(args.DST / f"{stem}.png", output)
    entry = {"source": job.source, "base": job.base, "stamp": job.stamp, "width": image.width, "height": image.height}
    entry |= {} if chosen.kept is None else {"kept": chosen.kept}
    entry |= {"size": size, "boxes": boxes, "thumbnail": base64.b64encode(thumbnail(opaque).tobytes()).decode()}
    entry["files"] = [f"{stem}.png" for stem in stems]
    return Result(job, entry, parts=[make_opaque(part, args.background) for part in parts] if keep_parts else [])


def describe_enlargement(factor: float) -> str:
    """Return "enlarged N times", with enough digits that an image that is too small never shows "1 times"."""
    return f"enlarged {factor:.3g} times" if factor < 100 else f"enlarged {factor:.0f} times"


def crop(image: Image.Image, size: tuple[int, int], box: Box, color: Color) -> Image.Image:
    """Return the part `box` resized to (width, height) = `size`, without the file's metadata.

    Args:
        color: fills the result where the box exceeds the image; if it has alpha, so does the result.
    """
    filled = inside(box, *image.size)
    if filled == tuple(box):
        part = image.resize(size, Image.Resampling.LANCZOS, box=box)
        part.info = {}  # an ICC profile or a transparent color no longer applies
        return part
    canvas = Image.new("RGB" if len(color) == 3 else "RGBA", size, color)
    scales = size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1])
    width = min(size[0], max(1, round((filled[2] - filled[0]) * scales[0])))
    height = min(size[1], max(1, round((filled[3] - filled[1]) * scales[1])))
    part = image.convert(canvas.mode).resize((width, height), Image.Resampling.LANCZOS, box=filled)
    canvas.paste(part, (round((size[0] - width) / 2), round((size[1] - height) / 2)))
    return canvas


def make_opaque(image: Image.Image, background: str) -> Image.Image:
    """Return the image in mode "RGB"; with the background "auto", transparent pixels become white."""
    return on_background(image, "white" if background == "auto" else background)


def surrounding_color(image: Image.Image, box: Box, args: argparse.Namespace) -> Color:
    """Return the color (red, green, blue) that fills a box around an image, transparent with --keep_alpha.

    With --background auto, it is the border color that differs least from all others at the two edges that meet the
    background; white if the image has transparent pixels.
    """
    color = ImageColor.getrgb("white" if args.background == "auto" else args.background)[:3]
    if args.background == "auto" and image.mode == "RGB":
        small = np.asarray(image.resize((BORDER_SIDE, BORDER_SIDE), Image.Resampling.NEAREST), int)
        colors = (small[:, [0, -1]] if box[0] < box[1] else small[[0, -1]]).reshape(-1, 3)
        distances = np.abs(colors[:, None] - colors).sum((1, 2))
        color = tuple(map(int, colors[distances.argmin()]))
    return (*color, 0) if args.keep_alpha else color


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
        image = make_opaque(read_image(source.read(job.row)), background)
    except ValueError:
        return None
    return Appearance(thumbnail(image), image.width, image.height)


def recorded_appearance(entry: dict[str, Any]) -> Appearance:
    """Return what a prepared image looks like, from its entry in the record."""
    return Appearance(np.frombuffer(base64.b64decode(entry["thumbnail"]), np.uint8), entry["width"], entry["height"])
