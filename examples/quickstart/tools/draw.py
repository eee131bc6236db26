"""Draw the quickstart's images: one colored subject on a colored background, in one of several styles.

    python examples/quickstart/tools/draw.py                  # rewrites images/: 32 neon images with captions
    python examples/quickstart/tools/draw.py --style sunset --output_dir my_images --count 64
    python examples/quickstart/tools/draw.py --sheet sheet.png        # every style side by side

An image is a pure function of its `Scene` and its style, so every consumer (the builder of the model, the
measurements, the tests) draws what it needs instead of storing it.
"""

import argparse
import dataclasses
import random
import sys
from math import cos, sin
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.tools.shapes import SHAPES

COLORS = {
    "red": (222, 45, 45),
    "orange": (245, 140, 30),
    "yellow": (250, 218, 50),
    "green": (50, 165, 75),
    "blue": (45, 100, 220),
    "purple": (140, 60, 185),
    "pink": (245, 140, 185),
    "white": (250, 250, 250),
}
BACKGROUNDS = {**COLORS, "black": (25, 25, 28)}
SUBJECTS = ("circle", "square", "triangle", "star", "heart", "house", "tree", "fish", "cat", "sun", "flower", "boat")
SIZES = {"small": (0.24, 0.28), "": (0.33, 0.38), "big": (0.42, 0.45)}  # radius as a share of the image's side
BASE_STYLES = {"flat": "", "cartoon": "cartoon", "watercolor": "watercolor"}  # style -> its word in captions
DETAILS = ("dark", "door", "window", "core", "eye", "nose", "sail")  # roles whose own outline is drawn
NEW_STYLES = ("neon", "blueprint", "sunset")  # no caption names them and the UNet never sees them
STYLES = (*BASE_STYLES, *NEW_STYLES)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in an image. Lengths are shares of the image's side; the angle is in radians."""

    subject: str
    color: str
    background: str
    size: str = ""
    radius: float = 0.36
    x: float = 0.5
    y: float = 0.5
    angle: float = 0.0
    seed: int = 0  # small colour changes and paper texture


def random_scene(rng: random.Random) -> Scene:
    """A scene whose subject always lies inside the image and differs from the background in color."""
    color = rng.choice(list(COLORS))
    size = rng.choice(["small", "", "", "", "big"])
    radius = rng.uniform(*SIZES[size])
    slack = max(0.0, 0.5 - 1.08 * radius) * 0.5
    return Scene(
        subject=rng.choice(SUBJECTS),
        color=color,
        background=rng.choice([name for name in BACKGROUNDS if name != color]),
        size=size,
        radius=radius,
        x=0.5 + rng.uniform(-slack, slack),
        y=0.5 + rng.uniform(-slack, slack),
        angle=rng.uniform(-0.08, 0.08),
        seed=rng.randrange(1 << 30),
    )


def is_held_out(scene: Scene) -> bool:
    """Whether this subject, color and background never occur together in the training images (about 1 in 11)."""
    subject, color = SUBJECTS.index(scene.subject), list(COLORS).index(scene.color)
    return (subject + 3 * color + 7 * list(BACKGROUNDS).index(scene.background)) % 10 == 0


def caption(scene: Scene, style: str = "flat") -> str:
    """The scene in plain words; a base style is named, a new one is not (its captions are those of "flat")."""
    subject = " ".join(word for word in (scene.size, scene.color, scene.subject) if word)
    article = "an" if subject[0] in "aeiou" else "a"
    background_article = "an" if scene.background[0] in "aeiou" else "a"
    text = f"{article} {subject} on {background_article} {scene.background} background"
    word = BASE_STYLES.get(style)
    return f"a {word} of {text}" if word else text


def _mix(a, b, share):
    return tuple(round(x * (1 - share) + y * share) for x, y in zip(a, b))


def _far(a, b, distance=120):
    return sum(abs(x - y) for x, y in zip(a, b)) > distance


def _palette(main, background):
    """Colour of each role, keeping the details visible on any subject and background."""
    return {
        "main": main,
        "dark": _mix(main, (20, 15, 20), 0.38),
        "eye": (20, 20, 25),
        "wood": (120, 72, 35),
        "door": (105, 62, 35),
        "window": (255, 243, 170) if _far(main, (255, 243, 170), 260) else (130, 190, 240),
        "nose": (245, 120, 140) if _far(main, (245, 120, 140)) else (120, 40, 50),
        "stem": (45, 135, 60) if _far(background, (45, 135, 60)) else (20, 75, 35),
        "core": (250, 215, 60) if _far(main, (250, 215, 60), 130) else (150, 85, 30),
        "sail": (245, 243, 235) if _far(background, (245, 243, 235)) else (200, 200, 210),
    }


# --- Styles: each draws the placed shapes on a canvas of `side` pixels.


def _fill(image, shapes, colors):
    draw = ImageDraw.Draw(image)
    for points, role in shapes:
        draw.polygon(points, fill=colors[role])
    return image


def _outline(image, shapes, color_of, width):
    draw = ImageDraw.Draw(image)
    for points, role in shapes:
        draw.line([*points, *points[:2]], fill=color_of(role), width=max(1, round(width * image.width)), joint="curve")
    return image


def _flat(shapes, colors, background, side, seed):
    return _fill(Image.new("RGB", (side, side), background), shapes, colors)


def _line_art(image, shapes, inside, ink, width):
    """Outlines with one common contour where parts touch; `inside` and `ink` give the colours by role."""
    _outline(image, shapes, ink, width)
    _fill(image, shapes, inside)
    return _outline(image, [shape for shape in shapes if shape[1] in DETAILS], ink, 0.7 * width)


def _cartoon(shapes, colors, background, side, seed):
    image = Image.new("RGB", (side, side), background)
    return _line_art(image, shapes, colors, lambda role: (15, 15, 18), 0.045)


def _watercolor(shapes, colors, background, side, seed):
    paper = (255, 252, 245)
    image = Image.new("RGB", (side, side), _mix(background, paper, 0.3))
    _fill(image, shapes, {role: _mix(color, paper, 0.15) for role, color in colors.items()})
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.014 * side)), np.float32)
    noise = np.random.RandomState(seed).rand(8, 8)
    blots = Image.fromarray((255 * noise).astype(np.uint8)).resize((side, side), Image.BICUBIC)
    dilution = (np.asarray(blots, np.float32)[..., None] / 255 * 0.6 - 0.15).clip(0, 0.45)
    return Image.fromarray((pixels * (1 - dilution) + np.array(paper) * dilution).astype(np.uint8))


def _neon(shapes, colors, background, side, seed):
    def light(role):
        return colors[role] if role in ("stem", "core", "sail", "window", "nose") else colors["main"]

    def tubes(share_of_white, width):
        dark = dict.fromkeys(colors, (0, 0, 0))
        layer = Image.new("RGB", (side, side))
        return _line_art(layer, shapes, dark, lambda role: _mix(light(role), (255, 255, 255), share_of_white), width)

    glow = tubes(0, 0.12).filter(ImageFilter.GaussianBlur(0.028 * side))
    wall = Image.new("RGB", (side, side), _mix(background, (8, 6, 18), 0.88))
    return ImageChops.lighter(ImageChops.add(wall, glow), tubes(0.3, 0.075))


def _blueprint(shapes, colors, background, side, seed):
    paper = (28, 62, 130)
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    for at in range(0, side, side // 8):
        draw.line([(at, 0), (at, side)], fill=(62, 100, 170), width=side // 85)
        draw.line([(0, at), (side, at)], fill=(62, 100, 170), width=side // 85)
    return _line_art(image, shapes, dict.fromkeys(colors, paper), lambda role: (235, 240, 250), 0.055)


def _sunset(shapes, colors, background, side, seed):
    height = np.linspace(0, 1, side)[:, None, None]
    sky = np.array((70, 30, 110)) * (1 - height) + np.array((255, 150, 50)) * height
    image = Image.fromarray(np.broadcast_to(sky, (side, side, 3)).astype(np.uint8))
    return _fill(image, shapes, {role: _mix(color, (15, 5, 20), 0.88) for role, color in colors.items()})


_DRAW = {
    "flat": _flat,
    "cartoon": _cartoon,
    "watercolor": _watercolor,
    "neon": _neon,
    "blueprint": _blueprint,
    "sunset": _sunset,
}


def draw(scene: Scene, style: str = "flat", size: int = 128) -> Image.Image:
    """The image of a scene: RGB, size x size pixels, anti-aliased by drawing at twice the size."""
    rng, side = random.Random(scene.seed), 2 * size

    def shade(color):
        return tuple(min(255, max(0, value + rng.randint(-9, 9))) for value in color)

    main, background = shade(COLORS[scene.color]), shade(BACKGROUNDS[scene.background])
    c, s, r = cos(scene.angle), sin(scene.angle), scene.radius
    shapes = [
        ([(side * (scene.x + r * (x * c - y * s)), side * (scene.y + r * (x * s + y * c))) for x, y in points], role)
        for points, role in SHAPES[scene.subject]
    ]
    image = _DRAW[style](shapes, _palette(main, background), background, side, scene.seed % (1 << 31))
    return image.resize((size, size), Image.BOX)


def to_array(images) -> np.ndarray:
    """PIL images -> float32 array (N, 3, height, width) in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked, dtype=np.float32) / 127.5 - 1


def write_images(folder: Path, style: str, count: int, seed: int):
    """`count` PNG files with a sidecar caption each; every subject appears about equally often."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        scene = dataclasses.replace(random_scene(rng), subject=SUBJECTS[i % len(SUBJECTS)])
        draw(scene, style).save(folder / f"{i:02d}.png", optimize=True)
        (folder / f"{i:02d}.txt").write_text(caption(scene, style) + "\n", encoding="utf-8")


def sheet(seed: int = 1) -> Image.Image:
    """Every subject (columns) in every style (rows)."""
    rng, cell = random.Random(seed), 132
    image = Image.new("RGB", (len(SUBJECTS) * cell, len(STYLES) * cell), (128, 128, 128))
    for row, style in enumerate(STYLES):
        for column, subject in enumerate(SUBJECTS):
            scene = dataclasses.replace(random_scene(rng), subject=subject)
            image.paste(draw(scene, style), (column * cell + 2, row * cell + 2))
    return image


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--style", choices=STYLES, default="neon")
    parser.add_argument("--output_dir", type=Path, help="needed for any but the quickstart's own 32 neon images")
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=32)
    parser.add_argument("--sheet", type=Path, help="write a sheet of every style to this PNG instead")
    args = parser.parse_args()
    own = (args.style, args.count, args.seed) == ("neon", 32, 32)
    if args.sheet:
        sheet().save(args.sheet)
    elif args.output_dir is None and not own:
        parser.error("--output_dir is missing: a folder for the images")
    else:
        write_images(
            args.output_dir or Path(__file__).resolve().parents[1] / "images", args.style, args.count, args.seed
        )


if __name__ == "__main__":
    main()
