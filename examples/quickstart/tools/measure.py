"""Measure the quickstart's model, and what a hypernetwork changes in it.

    python examples/quickstart/tools/measure.py model                                # does it draw what the prompt says?
    python examples/quickstart/tools/measure.py model --samples 120 --sheet model.png
    python examples/quickstart/tools/measure.py hypernetwork output/quickstart          # does it draw in the new style now?
    python examples/quickstart/tools/measure.py hypernetwork output/quickstart --strength 0.5 --sheet neon.png --json

A small classifier, trained on drawn images only (about a minute, once), says what is in a sample. Everything is
drawn from fixed seeds and computed on the CPU, so the same weights give the same figures.
"""

import argparse
import json
import random
import sys
from pathlib import Path

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


# --- Samples and losses


def load_pipeline(folder):
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def prompt_scenes(count, seed=240):
    """Scenes for prompts without a size: the subjects in turn, every fourth round of them combinations not in training.

    A subject without combinations not in training gets ordinary ones in these rounds.
    """
    rng, scenes = random.Random(seed), []
    for i in range(count):
        subject, held_out = SUBJECTS[i % COLUMNS], i // COLUMNS % 4 == 0
        combinations = [Scene(subject, c, b) for c in COLORS for b in BACKGROUNDS if c != b]
        scenes.append(rng.choice([scene for scene in combinations if is_held_out(scene) == held_out] or combinations))
    return scenes


def sample(pipeline, scenes, guidance_scale=4.0, steps=20, batch_size=COLUMNS, seed=1000):
    """One PIL image for each scene's caption; the i-th starts from noise of seed + i, whatever the batch size."""
    images = []
    for at in range(0, len(scenes), batch_size):
        prompts = [caption(scene) for scene in scenes[at : at + batch_size]]
        generators = [torch.Generator().manual_seed(seed + at + i) for i in range(len(prompts))]
        output = pipeline(prompts, guidance_scale=guidance_scale, num_inference_steps=steps, generator=generators)
        images += output.images
    return images


@torch.no_grad()
def denoising_loss(pipeline, style, count=16, draws=4, seed=999):
    """The denoising loss on `count` new images in a style, each at `draws` timesteps spread over 20 to 980."""
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


def save_sheet(images, path, rows=8, border=2):
    """A PNG of the first `rows` x 12 images, a subject in each column."""
    cell = images[0].width + 2 * border
    rows = min(rows, len(images) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * cell, rows * cell), (128, 128, 128))
    for i, image in enumerate(images[: rows * COLUMNS]):
        sheet.paste(image, (i % COLUMNS * cell + border, i // COLUMNS * cell + border))
    sheet.save(path)


# --- The figures


def share(right):
    right = list(right)
    return sum(right) / len(right)


def matches(scenes, judged, *heads):
    """For each scene, whether the classifier saw it so in all these heads."""
    return [all(judged[head][i] == getattr(scene, head) for head in heads) for i, scene in enumerate(scenes)]


def prompt_accuracy(scenes, judged):
    """{what: share of the samples where the classifier saw what the prompt said}."""
    return {
        "subject": share(matches(scenes, judged, "subject")),
        "color": share(matches(scenes, judged, "color")),
        "background": share(matches(scenes, judged, "background")),
        "both colors": share(matches(scenes, judged, "color", "background")),
        "all three": share(matches(scenes, judged, "subject", "color", "background")),
    }


def measure_model(args):
    """How well the model follows its prompts, as a nested dict of shares."""
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


def measure_hypernetwork(args):
    """What a hypernetwork changes in the losses and in the samples, as a nested dict of numbers and shares."""
    classifier, scenes = load_classifier(), prompt_scenes(args.samples)
    pipeline, network = load_pipeline(args.model), hypernet.load(args.path)

    def measure():
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
    hypernet.attach(pipeline.unet, network, strength=args.strength)
    after, images_after = measure()
    hypernet.detach(pipeline.unet)
    if args.sheet:
        rows = range(0, len(scenes), COLUMNS)
        pairs = [images[at : at + COLUMNS] for at in rows for images in (images_before, images_after)]
        save_sheet([image for row in pairs for image in row], args.sheet)
    falls = {name: 1 - after[name] / before[name] for name in before if name.startswith("loss")}
    return {"samples": {"all": len(scenes)}, "without": before, "with": after, "fall": falls}


def report(figures):
    """The figures as text: one line for each group; counts and losses as numbers, shares in percent."""

    def text(name, value):
        number = str(value) if isinstance(value, int) else f"{value:.4f}" if "loss" in name else f"{value:.1%}"
        return f"{name} {number}"

    return "\n".join(
        f"{group}: " + ", ".join(text(name if group != "fall" else name[5:], value) for name, value in values.items())
        for group, values in figures.items()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    model = commands.add_parser("model", help="how well the model follows its prompts")
    model.set_defaults(measure=measure_model, samples=240)
    hypernetwork = commands.add_parser("hypernetwork", help="what a hypernetwork changes")
    hypernetwork.set_defaults(measure=measure_hypernetwork, samples=120)
    hypernetwork.add_argument("path", type=Path, help="a trained folder, a checkpoint or a file")
    hypernetwork.add_argument("--strength", type=float, default=1.0)
    hypernetwork.add_argument("--style", choices=STYLES, default="neon")
    for command in (model, hypernetwork):
        command.add_argument("--model", type=Path, default=QUICKSTART / "model", help="a diffusers folder")
        command.add_argument("--samples", type=int, help="a multiple of 12: every subject equally often")
        command.add_argument("--sheet", type=Path, help="write samples to this PNG, one subject in each column")
        command.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse_args()
    if args.samples < 1 or args.samples % COLUMNS:
        parser.error(f"--samples {args.samples}: it must be a multiple of {COLUMNS}, one for each subject")
    figures = args.measure(args)
    print(json.dumps(figures, indent=2) if args.json else report(figures))


if __name__ == "__main__":
    main()
