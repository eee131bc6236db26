"""Compose the images of the quickstart: an artist's emoji of one subject on a colored background, and its caption.

    python examples/quickstart/tools/scenes.py --hand openmoji --output_dir my_images      # 32 images with captions
    python examples/quickstart/tools/scenes.py --sheet sheet.jpg                           # ten subjects, all hands

An image is a pure function of its `Scene`.
"""

import argparse
import dataclasses
import random
import sys
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from examples.quickstart.tools.sets import HANDS, MODEL_HANDS, SETS, SUBJECTS, find, render
from hypernet.cli.script import run_script

BACKGROUNDS = {
    "red": (222, 66, 66),
    "orange": (245, 152, 56),
    "yellow": (250, 222, 92),
    "green": (92, 184, 108),
    "blue": (74, 138, 226),
    "purple": (150, 96, 206),
    "pink": (246, 160, 196),
    "white": (250, 250, 250),
}
SIZES = {"small": 0.5, "": 0.75, "big": 0.875}  # the emoji's side as a share of the image's
NOT_MIRRORED = ("taxi", "ambulance", "fire engine", "sleeping face", "alarm clock", "moon")  # letters, or a direction
NO_ARTICLE = ("bread", "cherries", "corn", "fries", "grapes", "jeans", "scissors", "wine")


@dataclasses.dataclass(frozen=True)
class Scene:
    """What is in an image. Lengths are shares of the image's side."""

    subject: str
    hand: str
    background: str
    size: str = ""
    side: float = 0.74
    x: float = 0.5
    y: float = 0.5
    mirrored: bool = False
    seed: int = 0  # small changes of the background color


def reach(side: float) -> float:
    """Return how far an emoji of this side is moved to the left or right, as a share of the image's side."""
    return min(0.125, (1 - side) / 2)


def random_scene(
    rng: random.Random, hands: Sequence[str] = MODEL_HANDS, subject: str | None = None, hand: str | None = None
) -> Scene:
    """Return a scene whose emoji lies inside the image; what is not given is drawn at random.

    Sizes and places are few, and at 128 pixels an emoji begins at a multiple of 8, the pixels that one latent stands for:
    an emoji then always has the same latents, moved. With free sizes and places, a small model only learns textures.
    """
    hand = hand or rng.choice(hands)
    while subject is None or not find(subject, hand):
        subject = rng.choice(list(SUBJECTS))
    size = rng.choice(["small", "", "", "", "big"])
    side = SIZES[size]
    return Scene(
        subject=subject,
        hand=hand,
        background=rng.choice(list(BACKGROUNDS)),
        size=size,
        side=side,
        x=0.5 + rng.choice([-reach(side), 0, 0, reach(side)]),
        mirrored=rng.random() < 0.5 and subject not in NOT_MIRRORED,
        seed=rng.randrange(1 << 30),
    )


def with_article(text: str) -> str:
    return ("an " if text[0] in "aeiou" else "a ") + text


def caption(scene: Scene, name_hand: bool = False) -> str:
    """Return the scene in plain words, with the hand's word ("a glossy drawing of ...") if it is asked for and has one."""
    subject = " ".join(word for word in (scene.size, scene.subject) if word)
    if scene.subject not in NO_ARTICLE:
        subject = with_article(subject)
    text = f"{subject} on {with_article(scene.background)} background"
    words = SETS[scene.hand].words
    return f"{with_article(words)} drawing of {text}" if name_hand and words else text


def draw(scene: Scene, size: int = 128, emoji: Image.Image | None = None) -> Image.Image:
    """Return the image of a scene: RGB, size x size pixels. An RGBA `emoji` takes the place of the artist's."""
    rng = random.Random(scene.seed)
    ground = tuple(min(255, max(0, value + rng.randint(-8, 8))) for value in BACKGROUNDS[scene.background])
    side = round(scene.side * size)
    emoji = (emoji or render(scene.subject, scene.hand)).resize((side, side), Image.Resampling.LANCZOS)
    if scene.mirrored:
        emoji = ImageOps.mirror(emoji)
    image = Image.new("RGB", (size, size), ground)
    image.paste(emoji, (round(scene.x * size - side / 2), round(scene.y * size - side / 2)), emoji)
    return image


def to_array(images: Iterable[Image.Image]) -> np.ndarray:
    """Stack PIL images as a float32 array (N, 3, height, width) in [-1, 1]."""
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)
    return np.ascontiguousarray(stacked, dtype=np.float32) / 127.5 - 1


def write_images(folder: Path, hand: str, count: int = 32, seed: int = 7, exclude: Collection[str] = ()) -> list[Scene]:
    """Write PNG files in one hand, each with a sidecar caption, and return their scenes.

    No subject comes twice, and none of those to `exclude`.
    """
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    subjects = [subject for subject in SUBJECTS if find(subject, hand) and subject not in exclude]
    written = []
    for i, subject in enumerate(rng.sample(subjects, count)):
        scene = random_scene(rng, subject=subject, hand=hand)
        draw(scene).save(folder / f"{i:02d}.png", optimize=True)
        (folder / f"{i:02d}.txt").write_text(caption(scene) + "\n", encoding="utf-8")
        written.append(scene)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hand", choices=SETS, default="openmoji")
    parser.add_argument("--output_dir", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sheet", type=Path, help="draw ten subjects (columns) in every hand (rows) into this file")
    args = parser.parse_args()
    if args.output_dir:
        write_images(args.output_dir, args.hand, args.count, args.seed)
    if args.sheet:
        columns = ("apple", "cat", "house", "rocket", "rose", "whale", "guitar", "umbrella", "sailboat", "mushroom")
        sheet, cell, backgrounds = Image.new("RGB", (1320, 132 * len(HANDS)), (128, 128, 128)), 132, list(BACKGROUNDS)
        for row, hand in enumerate(HANDS):
            for column, subject in enumerate(columns):
                if find(subject, hand):
                    scene = Scene(subject, hand, backgrounds[column % len(backgrounds)], side=0.84)
                    sheet.paste(draw(scene), (column * cell + 2, row * cell + 2))
        sheet.save(args.sheet, quality=90)
    if not (args.output_dir or args.sheet):
        parser.error("name an --output_dir or a --sheet")


if __name__ == "__main__":
    run_script(main)
