#!/usr/bin/env python
"""How many pictures prepare.py does in a second, and how often its --focus keeps a subject in the frame.

    python examples/benchmarks/prepare.py
    python examples/benchmarks/prepare.py --count 40

The pictures are drawn: 1024 x 1024 pixels with the grain of a camera, as JPEG and as PNG; and 100 wide and tall ones whose
subject stands off the centre, in six styles.
"""

import contextlib
import dataclasses
import io
import os
import random
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import numpy as np
from PIL import Image

from examples import prepare
from examples.preparation.focus import Focus, can_find_faces
from examples.quickstart.tools.draw import STYLES, draw, random_scene
from examples.quickstart.tools.shapes import SHAPES
from hypernet.cli.script import ScriptParser, run_script
from hypernet.data.image_io import crop_box


def grainy(image: Image.Image, seed: int, deviation=4) -> Image.Image:
    """With the noise of a camera, without which a drawing is compressed far more easily than a photo."""
    noise = np.random.RandomState(seed).randn(image.height, image.width, 1) * deviation
    return Image.fromarray((np.asarray(image, np.float32) + noise).clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int, ending: str, side=1024):
    """Drawn pictures, each another one."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for i in range(count):
        image = draw(random_scene(rng), "watercolor", size=256).resize((side, side), Image.Resampling.BICUBIC)
        grainy(image, i).save(folder / f"{i:03d}.{ending}", quality=95)


def pictures_per_second(folder: Path, target: Path, *options) -> float:
    """Of a whole run of prepare.py within this process, its sheet left out."""
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        prepare.main([str(folder), str(target), "--sheet_images=0", *options])
    return len(list(folder.iterdir())) / (time.perf_counter() - begun)


def off_centre(rng: random.Random, side=480) -> tuple[Image.Image, tuple[float, ...]]:
    """(a picture twice as wide as high, or the other way about, the box around its subject), the subject in an outer part
    of its longer side, with the grain of a camera."""
    scene = dataclasses.replace(random_scene(rng), radius=rng.uniform(0.09, 0.17))
    along = rng.uniform(1.1 * scene.radius, 0.32)
    along, across = rng.choice([along, 1 - along]), 0.5 + rng.uniform(-1, 1) * (0.24 - scene.radius)
    is_wide = rng.random() < 0.5
    x, y = (along, across) if is_wide else (across, along)
    scene = dataclasses.replace(scene, x=x, y=y, angle=0.0)
    image = draw(scene, rng.choice(STYLES), size=side)
    points = [point for shape, _ in SHAPES[scene.subject] for point in shape]
    xs, ys = [x + scene.radius * point[0] for point in points], [y + scene.radius * point[1] for point in points]
    box = np.array([min(xs), min(ys), max(xs), max(ys)]) * side
    quarter = side // 4
    cut = (0, quarter, side, side - quarter) if is_wide else (quarter, 0, side - quarter, side)
    box -= [cut[0], cut[1], cut[0], cut[1]]
    return grainy(image.crop(cut), rng.randrange(2**31), 3), tuple(box)


def is_inside(box, frame, slack=1.0) -> bool:
    """Whether a box lies in a frame, but for so many pixels."""
    return all(box[i] >= frame[i] - slack for i in (0, 1)) and all(box[i] <= frame[i] + slack for i in (2, 3))


def subjects_kept(count=100, seed=0) -> tuple[int, int]:
    """(by --focus, by a crop in the middle): of how many off-centre subjects all of the box is in a square crop."""
    rng, focus, kept = random.Random(seed), Focus(), [0, 0]
    for _ in range(count):
        image, box = off_centre(rng)
        kept[0] += is_inside(box, focus.box(image, (64, 64)))
        kept[1] += is_inside(box, crop_box(*image.size, (64, 64)))
    return tuple(kept)


def main(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("--count", type=int, default=200, help="pictures of each kind; default: %(default)s")
    args = parser.parse_args(arguments)
    focus, middle = subjects_kept()
    print(f"off-centre subjects wholly in the frame: {focus} of 100 by --focus, {middle} of 100 by the middle")
    with tempfile.TemporaryDirectory() as work:
        for ending in ("jpg", "png"):
            folder = Path(work, ending)
            write_photos(folder, args.count, ending)
            for name, options in (("", ["--size=512"]), ("", ["--size=1024"]), (" --focus", ["--size=512", "--focus"])):
                speed = pictures_per_second(folder, Path(work, f"{ending}{len(os.listdir(work))}"), *options)
                print(f"{ending} of 1024x1024, {options[0]}{name}: {speed:.1f} pictures a second", flush=True)
    print(f"{os.cpu_count()} cores; faces {'are' if can_find_faces() else 'are not'} looked for by --focus")


if __name__ == "__main__":
    run_script(main)
