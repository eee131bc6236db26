"""Measure what the model generates, or what a hypernetwork makes of it, by the classifier of emoji images.

python examples/quickstart/tools/measure.py model --sheet model.jpg
python examples/quickstart/tools/measure.py hypernetwork output/quickstart --hand openmoji --sheet openmoji.jpg
"""

import argparse
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import hypernet
from examples.quickstart.tools.classifier import Classifier, accuracy, judge, load_classifier
from examples.quickstart.tools.classifier_images import load_vae, reconstruct, to_pixels
from examples.quickstart.tools.scenes import (
    BACKGROUNDS,
    NOT_MIRRORED,
    SIZES,
    Scene,
    caption,
    draw,
    random_scene,
    reach,
    to_array,
)
from examples.quickstart.tools.sets import HANDS, MODEL_HANDS, SUBJECTS
from hypernet.cli.script import ScriptParser, run_script

MODEL = Path(__file__).resolve().parents[1] / "model"
Figures = dict[str, dict[str, float]]


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the model in float32, without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_scenes(count: int, seed: int = 480) -> list[Scene]:
    """Return scenes for prompts that name no size. The subjects take turns, in an order that mixes their kinds."""
    rng = random.Random(seed)
    subjects = rng.sample(list(SUBJECTS), len(SUBJECTS))
    return [
        Scene(subjects[i % len(subjects)], rng.choice(MODEL_HANDS), rng.choice(list(BACKGROUNDS))) for i in range(count)
    ]


def sample(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    guidance_scale: float = 4.0,
    steps: int = 20,
    batch_size: int = 16,
    seed: int = 1000,
) -> list[Image.Image]:
    """Generate an image for each prompt; the i-th starts from noise of seed + i, whatever the batch size."""
    images = []
    for at in range(0, len(prompts), batch_size):
        batch = list(prompts[at : at + batch_size])
        generators = [torch.Generator().manual_seed(seed + at + i) for i in range(len(batch))]
        output = pipeline(batch, guidance_scale=guidance_scale, num_inference_steps=steps, generator=generators)
        images += output.images
    return images


def share_right(seen: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(seen, wanted, strict=True)) / len(wanted)


def nearest_hand(image: Image.Image, subject: str, background: str) -> str:
    """Return the model hand with the image of this subject and background that is nearest, by squared error at 32 x 32.

    All sizes and places that the model was trained on are tried. (The classifier has to judge a hand by its strokes,
    since nobody has drawn some subjects in it; of its own hands, the model has seen every subject.)
    """
    scenes = [
        Scene(subject, hand, background, size, side, 0.5 + offset, mirrored=mirrored)
        for hand in MODEL_HANDS
        for size, side in SIZES.items()
        for offset in (-reach(side), 0, reach(side))
        for mirrored in ((False,) if subject in NOT_MIRRORED else (False, True))
    ]
    error = to_array(draw(scene, size=32) for scene in scenes) - to_array([image.reduce(4)])
    return scenes[np.square(error).mean(axis=(1, 2, 3)).argmin()].hand


def nearest_hand_accuracy(hand: str, count: int = 48) -> float:
    """Return how often `nearest_hand` names the hand of an artist's own images after the VAE."""
    rng = random.Random(hand)
    scenes = [random_scene(rng, hand=hand) for _ in range(count)]
    pixels = reconstruct(load_vae(), to_pixels([draw(scene) for scene in scenes])).permute(0, 2, 3, 1).numpy()
    images = [Image.fromarray(each) for each in pixels]
    seen = [nearest_hand(image, scene.subject, scene.background) for image, scene in zip(images, scenes)]
    return share_right(seen, [hand] * count)


def save_sheet(images: Sequence[Image.Image], path: Path, columns: int = 12, border: int = 2) -> None:
    cell = images[0].width + 2 * border
    sheet = Image.new("RGB", (columns * cell, -(-len(images) // columns) * cell), (128, 128, 128))
    for i, image in enumerate(images):
        sheet.paste(image, (i % columns * cell + border, i // columns * cell + border))
    sheet.save(path)


def measure_model(args: argparse.Namespace, classifier: Classifier) -> Figures:
    """Measure how well samples follow their prompts; every other prompt names the hand."""
    judges = accuracy(classifier)  # first: it needs the artists' emoji, which may not be there
    for hand in MODEL_HANDS:
        judges[hand]["nearest hand"] = nearest_hand_accuracy(hand)
    scenes = prompt_scenes(args.samples)
    prompts = [caption(scene, name_hand=i % 2 == 0) for i, scene in enumerate(scenes)]
    images = sample(load_pipeline(args.model), prompts)
    if args.sheet:
        save_sheet(images[:96], args.sheet)
        args.sheet.with_suffix(".txt").write_text("\n".join(prompts[:96]) + "\n", encoding="utf-8")  # its prompts
    seen = judge(classifier, images)
    subjects = [scene.subject for scene in scenes]
    wrong = sorted({wanted for wanted, name in zip(subjects, seen["subject"]) if wanted != name})
    print("subjects missed at least once:", ", ".join(wrong), file=sys.stderr)
    hands = [nearest_hand(image, scene.subject, scene.background) for image, scene in zip(images[::2], scenes[::2])]
    right = {
        "subject": share_right(seen["subject"], subjects),
        "background": share_right(seen["background"], [scene.background for scene in scenes]),
        "hand, when named": share_right(hands, [scene.hand for scene in scenes[::2]]),
    }
    return {f"{len(scenes)} samples": right, **judges}


def measure_hypernetwork(args: argparse.Namespace, classifier: Classifier) -> Figures:
    """Measure samples without and with a hypernetwork: the share in its hand, and of right subjects."""
    judges = accuracy(classifier)  # first: it needs the artists' emoji, which may not be there
    scenes = prompt_scenes(args.samples)
    pipeline, figures, rows = load_pipeline(args.model), {}, []
    for title in ("without", "with"):
        if title == "with":
            hypernet.attach(pipeline.unet, hypernet.load(args.path), strength=args.strength)
        images = sample(pipeline, [caption(scene) for scene in scenes])
        seen = judge(classifier, images)
        rows.append(images)
        figures[title] = {
            f"in {args.hand}": share_right(seen["hand"], [args.hand] * len(scenes)),
            "subject": share_right(seen["subject"], [scene.subject for scene in scenes]),
            "background": share_right(seen["background"], [scene.background for scene in scenes]),
        }
    if args.sheet:
        save_sheet([image for at in range(0, 48, 12) for images in rows for image in images[at : at + 12]], args.sheet)
    return {**figures, args.hand: judges[args.hand]}


def main() -> None:
    parser = ScriptParser(__doc__)
    commands = parser.add_subparsers(required=True, parser_class=argparse.ArgumentParser)
    model = commands.add_parser("model", help="measure how well the model follows its prompts")
    model.set_defaults(measure=measure_model, samples=480)
    hypernetwork = commands.add_parser("hypernetwork", help="measure what a hypernetwork changes")
    hypernetwork.set_defaults(measure=measure_hypernetwork, samples=120)
    hypernetwork.add_argument("path", type=Path, help="trained folder, checkpoint or file")
    hypernetwork.add_argument("--strength", type=float, default=1.0)
    hypernetwork.add_argument("--hand", choices=HANDS, default="openmoji", help="the hand that it was trained on")
    for command in (model, hypernetwork):
        command.add_argument("--model", type=Path, default=MODEL, help="the base model's folder")
        command.add_argument("--samples", type=int, help="number of samples, at least 48")
        command.add_argument("--sheet", type=Path, help="write samples to this image")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args()
    if args.samples < 48:
        parser.error(f"--samples {args.samples}: at least 48 are needed")
    figures = args.measure(args, load_classifier())
    if args.json:
        print(json.dumps(figures, indent=2))
    for group, shares in () if args.json else figures.items():
        print(f"{group}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))


if __name__ == "__main__":
    run_script(main)
