#!/usr/bin/env python
"""Measure the speed of examples/prepare.py, and how often --focus keeps a subject in the frame.

    python examples/benchmarks/prepare.py
    python examples/benchmarks/prepare.py --count 40

The images are drawn: 1024 x 1024 pixels with camera noise, as JPEG and as PNG; and 100 wide and tall ones whose subject
is off the center, a third of them with uneven light and a third on graph paper.
"""

import contextlib
import dataclasses
import io
import os
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import numpy as np
from PIL import Image, ImageDraw

from examples import prepare
from examples.preparation.focus import Focus, can_find_faces
from examples.quickstart.tools.shapes import draw, outline, random_shape
from hypernet.cli.generation_options import parse_count
from hypernet.data.image_io import crop_box

OFF_CENTER_IMAGES = 100
Box = Sequence[float]  # left, top, right, bottom


def add_noise(image: Image.Image, seed: int, deviation: float = 4) -> Image.Image:
    """Add camera noise, without which a drawing compresses far better than a photo."""
    noise = np.random.RandomState(seed).randn(image.height, image.width, 1) * deviation
    return Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))


def write_images(folder: Path, count: int, extension: str, side: int = 1024) -> None:
    """Write `count` different images."""
    folder.mkdir(parents=True)
    for i in range(count):
        add_noise(draw(random_shape(i), side), i).save(folder / f"{i:03d}.{extension}", quality=95)


def images_per_second(folder: Path, target: Path, *options: str) -> float:
    """Return the speed of a whole run of prepare.py within this process, without its sheet."""
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare.main([str(folder), str(target), "--sheet_images=0", *options])
    return len(list(folder.iterdir())) / (time.perf_counter() - started)


def shade(image: Image.Image, rng: random.Random) -> Image.Image:
    """Light an image from one side."""
    light = Image.linear_gradient("L").rotate(rng.choice([0, 90, 180, 270])).resize(image.size)
    return Image.blend(image, Image.merge("RGB", [light] * 3), 0.4)


def rule(image: Image.Image, rng: random.Random) -> Image.Image:
    """Draw the lines of graph paper across an image, darker or lighter than it."""
    lines = Image.new("L", image.size, 0)
    canvas, step = ImageDraw.Draw(lines), image.width // 16
    for at in range(step // 2, image.width, step):
        canvas.line([(at, 0), (at, image.height)], fill=70, width=image.width // 160)
        canvas.line([(0, at), (image.width, at)], fill=70, width=image.width // 160)
    return Image.composite(Image.new("RGB", image.size, rng.choice(["black", "white"])), image, lines)


def draw_off_center(rng: random.Random, side: int = 480) -> tuple[Image.Image, Box]:
    """Draw an image of aspect ratio 2:1 or 1:2 with its subject near one of the far ends, and camera noise.

    Returns:
        The image, and the box around the subject.
    """
    radius = rng.uniform(0.09, 0.17)
    along = rng.uniform(1.1 * radius, 0.32)
    along, across = rng.choice([along, 1 - along]), 0.5 + rng.uniform(-1, 1) * (0.24 - radius)
    is_wide = rng.random() < 0.5
    x, y = (along, across) if is_wide else (across, along)
    shape = dataclasses.replace(random_shape(rng.randrange(2**31)), radius=radius, x=x, y=y)
    image = draw(shape, side)
    change = rng.choice([None, shade, rule])
    image = change(image, rng) if change else image
    xs, ys = zip(*outline(shape))
    quarter = side // 4
    crop = (0, quarter, side, side - quarter) if is_wide else (quarter, 0, side - quarter, side)
    box = np.array([min(xs), min(ys), max(xs), max(ys)]) * side - [crop[0], crop[1], crop[0], crop[1]]
    return add_noise(image.crop(crop), rng.randrange(2**31), 3), tuple(box)


def is_inside(box: Box, frame: Box, slack: float = 1.0) -> bool:
    """Return whether a box lies in a frame, or sticks out by at most `slack` pixels."""
    return all(box[i] >= frame[i] - slack for i in (0, 1)) and all(box[i] <= frame[i] + slack for i in (2, 3))


def subjects_kept(count: int = OFF_CENTER_IMAGES, seed: int = 0) -> tuple[int, int]:
    """Count the off-center subjects that a square crop contains completely: with --focus, and with a center crop."""
    rng, focus, by_focus, by_center = random.Random(seed), Focus(), 0, 0
    for _ in range(count):
        image, box = draw_off_center(rng)
        by_focus += is_inside(box, focus.choose(image, (64, 64))[0])
        by_center += is_inside(box, crop_box(*image.size, (64, 64)))
    return by_focus, by_center


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--count", type=parse_count, default=200, help="images per format; default: %(default)s")
    args = parser.parse_args(arguments)
    by_focus, by_center = subjects_kept()
    kept = f"--focus keeps {by_focus} of {OFF_CENTER_IMAGES}, a center crop {by_center}"
    print(f"off-center subjects completely in the frame: {kept}")
    with tempfile.TemporaryDirectory() as work:
        for extension in ("jpg", "png"):
            folder = Path(work, extension)
            write_images(folder, args.count, extension)
            for options in (["--size=512"], ["--size=1024"], ["--size=512", "--focus"]):
                speed = images_per_second(folder, Path(work, f"{extension}{len(os.listdir(work))}"), *options)
                print(f"{extension} of 1024x1024, {' '.join(options)}: {speed:.1f} images per second", flush=True)
    print(f"{os.cpu_count()} cores; --focus {'looks' if can_find_faces() else 'does not look'} for faces")


if __name__ == "__main__":
    run_script(main)
