#!/usr/bin/env python
"""Score a style's own images as if they were samples: prompt fidelity, and share of correct subjects.

    python examples/benchmarks/own_images.py                                # four styles
    python examples/benchmarks/own_images.py --style_dir ink=my_drawings    # with a fifth style

If the base model can hardly match a style's own images to their captions, a hypernetwork that learns the style will
also have a low prompt fidelity. It is measured on 16 images and their captions, compared with what the base model
generates from the same captions. The subjects are those that the quickstart's classifier recognizes in the images whose
captions name one.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

from examples.benchmarks.judging import SAMPLING_STEPS
from examples.benchmarks.sample_scores import encode_images, encode_prompt
from examples.benchmarks.settings_study.settings import MODEL, STYLES
from examples.benchmarks.short_runs import add_style_options, write_styles
from examples.quickstart.tools.classifier import judge, load_classifier
from examples.quickstart.tools.measure import load_pipeline, sample, share_right
from examples.quickstart.tools.sets import SUBJECTS
from hypernet.training.prompt_fidelity import choose_alternatives, prompt_margin
from hypernet.utils.sequences import spread

IMAGES = 16


def own_fidelity(pipeline: StableDiffusionPipeline, images: Sequence[Image.Image], captions: Sequence[str]) -> float:
    """Return the prompt fidelity of images with these captions."""
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    choices = [[caption, *choose_alternatives(caption, captions)] for caption in captions]
    embeds = [[encode_prompt(pipeline, text) for text in choice] for choice in choices]

    def margins(shown: Sequence[Image.Image]) -> float:
        latents = encode_images(pipeline, shown)
        return sum(
            prompt_margin(pipeline.unet, scheduler, each, texts, None, seed, len(texts))
            for seed, (each, texts) in enumerate(zip(latents, embeds, strict=True))
        )

    return margins(images) / margins(sample(pipeline, captions, steps=SAMPLING_STEPS))


def main() -> None:
    parser = ScriptParser(__doc__)
    add_style_options(parser, list(STYLES))
    args: argparse.Namespace = parser.parse_args()
    pipeline, classifier = load_pipeline(MODEL), load_classifier()
    print("| style | prompt fidelity | correct subject |\n| --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as root:
        for style in write_styles(Path(root), args.styles, args.style_dir):
            paths = sorted(path for path in Path(root, "data", style, "images").iterdir() if path.suffix != ".txt")
            captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
            images = [Image.open(path).convert("RGB").resize((128, 128)) for path in paths]
            fidelity = own_fidelity(pipeline, spread(images, IMAGES), spread(captions, IMAGES))
            named = [[subject for subject in SUBJECTS if subject in caption] for caption in captions]
            known = [(image, max(names, key=len)) for image, names in zip(images, named) if names]
            seen = judge(classifier, [image for image, _ in known])["subject"]
            print(f"| {style} | {fidelity:.2f} | {share_right(seen, [name for _, name in known]):.0%} |", flush=True)


if __name__ == "__main__":
    run_script(main)
