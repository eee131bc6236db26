"""Draw plain colored shapes with captions, to test and to try things with.

python examples/quickstart/tools/shapes.py output/shapes               # 32 images of 128 pixels with captions
python examples/quickstart/tools/shapes.py output/more --count 8 --size 512 --seed 100
"""

import argparse
import dataclasses
import random
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageDraw

COLORS = {  # they differ in brightness too
    "red": (215, 40, 40),
    "orange": (245, 140, 30),
    "yellow": (250, 218, 50),
    "green": (60, 180, 90),
    "blue": (30, 70, 190),
    "purple": (150, 80, 200),
    "pink": (245, 140, 185),
    "white": (250, 250, 250),
}
CORNERS = {  # each corner's distance from the center, in radii
    "circle": [1.0] * 60,
    "triangle": [1.0] * 3,
    "square": [1.0] * 4,
    "hexagon": [1.0] * 6,
    "star": [1.0, 0.45] * 5,
}


@dataclasses.dataclass(frozen=True)
class Shape:
    """A shape on a background. Lengths are shares of the image's side; the angle is in radians."""

    name: str
    color: str
    background: str
    radius: float
    x: float
    y: float
    angle: float


def random_shape(seed: int) -> Shape:
    """Return a shape that lies inside the image and differs from the background in color."""
    rng = random.Random(seed)
    color, background = rng.sample(list(COLORS), 2)
    radius = rng.uniform(0.2, 0.4)
    x, y = rng.uniform(radius, 1 - radius), rng.uniform(radius, 1 - radius)
    return Shape(rng.choice(list(CORNERS)), color, background, radius, x, y, angle=rng.uniform(-0.3, 0.3))


def outline(shape: Shape) -> list[tuple[float, float]]:
    """Return the corners as (x, y), in shares of the image's side."""
    corners = CORNERS[shape.name]
    upright = shape.angle - pi / 2 + (pi / 4 if shape.name == "square" else 0)  # a square stands on a side
    angles = [upright + 2 * pi * i / len(corners) for i in range(len(corners))]
    return [(shape.x + shape.radius * r * cos(a), shape.y + shape.radius * r * sin(a)) for r, a in zip(corners, angles)]


def draw(shape: Shape, size: int = 128) -> Image.Image:
    """Return an RGB image of size x size pixels, anti-aliased by drawing at twice the size."""
    image = Image.new("RGB", (2 * size, 2 * size), COLORS[shape.background])
    corners = [(2 * size * x, 2 * size * y) for x, y in outline(shape)]
    ImageDraw.Draw(image).polygon(corners, fill=COLORS[shape.color])
    return image.reduce(2)


def caption(shape: Shape) -> str:
    """Return the shape in words: "a red star on an orange background"."""
    a, on_a = ("an" if color == "orange" else "a" for color in (shape.color, shape.background))
    return f"{a} {shape.color} {shape.name} on {on_a} {shape.background} background"


def write_images(folder: Path, count: int, size: int = 128, seed: int = 0) -> None:
    """Write 0.png, 1.png, ... with sidecar captions; image i is the random shape of `seed + i`."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        shape = random_shape(seed + i)
        draw(shape, size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption(shape), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--size", type=int, default=128, help="in pixels; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    args = parser.parse_args()
    write_images(args.folder, args.count, args.size, args.seed)
    print(f"images: {args.folder}")
