"""Measure the quickstart's model, and what a hypernetwork changes in it.

    python examples/quickstart/tools/measure.py model                             # does it follow its prompts?
    python examples/quickstart/tools/measure.py model --samples 120 --sheet model.png
    python examples/quickstart/tools/measure.py hypernetwork output/quickstart    # does it generate in its style?
    python examples/quickstart/tools/measure.py hypernetwork output/quickstart --strength 0.5 --sheet neon.png --json

A small classifier says what is in a sample. It is trained once, in about a minute, on images drawn by draw.py. All
seeds are fixed and everything runs on the CPU, so the same weights give the same figures.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

QUICKSTART = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(QUICKSTART.parents[1]))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

from diffusers import StableDiffusionPipeline

import hypernet
from examples.quickstart.tools.classifier import classifier_accuracy, judge, load_classifier
from examples.quickstart.tools.draw import (
    BACKGROUNDS,
    COLORS,
    STYLES,
    SUBJECTS,
    Scene,
    caption,
    draw,
    is_held_out,
    random_scene,
    to_array,
)

COLUMNS = len(SUBJECTS)

Judged = dict[str, list[str]]  # what the classifier is asked -> its answer for each image


# --- Samples and losses


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the model in float32, without progress bars."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_scenes(count: int, seed: int = 240) -> list[Scene]:
    """Return scenes for prompts that name no size. Subjects take turns, so that `COLUMNS` scenes are a round.

    Every fourth round uses combinations of subject and colors that are not in training, for the subjects that have any.
    """
    rng, scenes = random.Random(seed), []
    for i in range(count):
        subject, held_out = SUBJECTS[i % COLUMNS], i // COLUMNS % 4 == 0
        combinations = [Scene(subject, c, b) for c in COLORS for b in BACKGROUNDS if c != b]
        scenes.append(rng.choice([scene for scene in combinations if is_held_out(scene) == held_out] or combinations))
    return scenes


def sample(
    pipeline: StableDiffusionPipeline,
    scenes: Sequence[Scene],
    guidance_scale: float = 4.0,
    steps: int = 20,
    batch_size: int = COLUMNS,
    seed: int = 1000,
) -> list[Image.Image]:
    """Generate an image for each scene's caption; the i-th starts from noise of seed + i, whatever the batch size."""
    images = []
    for at in range(0, len(scenes), batch_size):
        prompts = [caption(scene) for scene in scenes[at : at + batch_size]]
        generators = [torch.Generator().manual_seed(seed + at + i) for i in range(len(prompts))]
        output = pipeline(prompts, guidance_scale=guidance_scale, num_inference_steps=steps, generator=generators)
        images += output.images
    return images


@torch.no_grad()
def denoising_loss(
    pipeline: StableDiffusionPipeline, style: str, count: int = 16, draws: int = 4, seed: int = 999
) -> float:
    """Return the denoising loss on `count` new images in a style, each at `draws` timesteps between 20 and 980."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    scenes = [random_scene(rng) for _ in range(count)]
    pixels = torch.from_numpy(to_array(draw(scene, style) for scene in scenes))
    clean = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    texts = [caption(scene, style) for scene in scenes]
    tokens = pipeline.tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    states = pipeline.text_encoder(tokens)[0]

    scheduler, losses = pipeline.scheduler, []
    for timesteps in torch.linspace(20, 980, draws * count).long().view(draws, count):
        noise = torch.randn(clean.shape, generator=generator)
        prediction = pipeline.unet(scheduler.add_noise(clean, noise, timesteps), timesteps, states).sample
        is_velocity = scheduler.config.prediction_type == "v_prediction"
        target = scheduler.get_velocity(clean, noise, timesteps) if is_velocity else noise
        losses.append(F.mse_loss(prediction, target).item())
    return sum(losses) / draws


def save_sheet(images: Sequence[Image.Image], path: Path, rows: int = 8, border: int = 2) -> None:
    """Write a PNG of the first `rows` rows of images, one column per subject."""
    cell = images[0].width + 2 * border
    rows = min(rows, len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * cell), (128, 128, 128))
    for i, image in enumerate(images[: rows * COLUMNS]):
        sheet.paste(image, (i % COLUMNS * cell + border, i // COLUMNS * cell + border))
    sheet.save(path)


# --- The figures


def share(right: Iterable[bool]) -> float:
    """Return the fraction that is True."""
    right = list(right)
    return sum(right) / len(right)


def matches(scenes: Sequence[Scene], judged: Judged, *heads: str) -> list[bool]:
    """Return for each scene whether the classifier is right about it on all these heads, such as "subject"."""
    return [all(judged[head][i] == getattr(scene, head) for head in heads) for i, scene in enumerate(scenes)]


def prompt_accuracy(scenes: Sequence[Scene], judged: Judged) -> dict[str, float]:
    """Return the share of samples that show what the prompt asked for, in each respect and in several at once."""
    return {
        "subject": share(matches(scenes, judged, "subject")),
        "color": share(matches(scenes, judged, "color")),
        "background": share(matches(scenes, judged, "background")),
        "both colors": share(matches(scenes, judged, "color", "background")),
        "all three": share(matches(scenes, judged, "subject", "color", "background")),
    }


def measure_model(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure how well the model follows its prompts; return counts and shares by group and name."""
    classifier, scenes = load_classifier(), prompt_scenes(args.samples)
    images = sample(load_pipeline(args.model), scenes)
    if args.sheet:
        save_sheet(images, args.sheet)
    judged = judge(classifier, images)
    held_out = [i for i, scene in enumerate(scenes) if is_held_out(scene)]
    judged_held_out = {head: [names[i] for i in held_out] for head, names in judged.items()}
    subject_right = matches(scenes, judged, "subject")
    return {
        "samples": {"all": len(scenes), "combinations not in training": len(held_out)},
        "all samples": prompt_accuracy(scenes, judged),
        "combinations not in training": prompt_accuracy([scenes[i] for i in held_out], judged_held_out),
        "subject by subject": {name: share(subject_right[i::COLUMNS]) for i, name in enumerate(SUBJECTS)},
        "classifier on drawn images": classifier_accuracy(classifier),
    }


def measure_hypernetwork(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Measure how a hypernetwork changes losses and samples; return counts, losses and shares by group and name."""
    classifier, scenes = load_classifier(), prompt_scenes(args.samples)
    pipeline, hypernetwork = load_pipeline(args.model), hypernet.load(args.path)

    def measure() -> tuple[dict[str, float], list[Image.Image]]:
        images = sample(pipeline, scenes)
        judged = judge(classifier, images)
        figures = {
            f"loss on {args.style}": denoising_loss(pipeline, args.style),
            "loss on flat": denoising_loss(pipeline, "flat"),
            f"samples in {args.style}": share(style == args.style for style in judged["style"]),
            "subject right": share(matches(scenes, judged, "subject")),
        }
        return figures, images

    before, images_before = measure()
    hypernet.attach(pipeline.unet, hypernetwork, strength=args.strength)
    after, images_after = measure()
    hypernet.detach(pipeline.unet)
    if args.sheet:
        rows = range(0, len(scenes), COLUMNS)
        pairs = [images[at : at + COLUMNS] for at in rows for images in (images_before, images_after)]
        save_sheet([image for row in pairs for image in row], args.sheet)
    falls = {name: 1 - after[name] / before[name] for name in before if name.startswith("loss")}
    return {"samples": {"all": len(scenes)}, "without": before, "with": after, "fall": falls}


def report(figures: dict[str, dict[str, Any]]) -> str:
    """Format the figures for the console, one group per line: counts and losses as numbers, shares in percent."""

    def text(name: str, value: float) -> str:
        number = str(value) if isinstance(value, int) else f"{value:.4f}" if "loss" in name else f"{value:.1%}"
        return f"{name} {number}"

    return "\n".join(
        f"{group}: " + ", ".join(text(name if group != "fall" else name[5:], value) for name, value in values.items())
        for group, values in figures.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model", help="measure how well the model follows its prompts")
    model.set_defaults(measure=measure_model, samples=240)
    hypernetwork = commands.add_parser("hypernetwork", help="measure what a hypernetwork changes")
    hypernetwork.set_defaults(measure=measure_hypernetwork, samples=120)
    hypernetwork.add_argument("path", type=Path, help="trained folder, checkpoint or file")
    hypernetwork.add_argument("--strength", type=float, default=1.0)
    hypernetwork.add_argument("--style", choices=STYLES, default="neon")
    for command in (model, hypernetwork):
        command.add_argument("--model", type=Path, default=QUICKSTART / "model", help="the base model's folder")
        command.add_argument("--samples", type=int, help="number of samples, a multiple of 12: one per subject")
        command.add_argument("--sheet", type=Path, help="write samples to this PNG, one subject in each column")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args()
    if args.samples < 1 or args.samples % COLUMNS:
        parser.error(f"--samples {args.samples}: it must be a positive multiple of {COLUMNS}, the number of subjects")
    figures = args.measure(args)
    print(json.dumps(figures, indent=2) if args.json else report(figures))


if __name__ == "__main__":
    main()
