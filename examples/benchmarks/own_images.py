#!/usr/bin/env python
"""Score a style's own images as if they were samples: prompt fidelity, also with wrong captions, and correct subjects.

    python examples/benchmarks/own_images.py                                # four styles
    python examples/benchmarks/own_images.py --style_dir ink=my_drawings    # with a fifth style

If the base model can hardly match a style's own images to their captions, a hypernetwork that learns the style will
also have a low prompt fidelity. As at the start of a run, it is measured on 16 images and their captions, compared with
what the base model generates from the same captions; and, to see what wrong captions do, with each image under the
caption of the next one. The subjects are those that the quickstart's classifier recognizes in the images whose captions
name one.
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


def own_fidelities(
    pipeline: StableDiffusionPipeline, images: Sequence[Image.Image], captions: Sequence[str], pool: Sequence[str]
) -> tuple[float, float]:
    """Return the prompt fidelity of images with their captions, and with those of the next image.

    Args:
        pool: captions to choose alternatives from.
    """
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    choices = [[caption, *choose_alternatives(caption, pool)] for caption in captions]
    embeds = [[encode_prompt(pipeline, text) for text in choice] for choice in choices]

    def margins(shown: Sequence[Image.Image]) -> float:
        latents = encode_images(pipeline, shown)
        return sum(
            prompt_margin(pipeline.unet, scheduler, each, texts, None, seed, len(texts))
            for seed, (each, texts) in enumerate(zip(latents, embeds, strict=True))
        )

    possible = margins(sample(pipeline, captions, steps=SAMPLING_STEPS))
    return margins(images) / possible, margins([*images[-1:], *images[:-1]]) / possible


def main() -> None:
    parser = ScriptParser(__doc__)
    add_style_options(parser, list(STYLES))
    args: argparse.Namespace = parser.parse_args()
    pipeline, classifier = load_pipeline(MODEL), load_classifier()
    print("| style | prompt fidelity | with wrong captions | correct subject |\n|" + " --- |" * 4, flush=True)
    with tempfile.TemporaryDirectory() as root:
        for style in write_styles(Path(root), args.styles, args.style_dir):
            paths = sorted(path for path in Path(root, "data", style, "images").iterdir() if path.suffix != ".txt")
            captions = [path.with_suffix(".txt").read_text(encoding="utf-8").strip() for path in paths]
            images = [Image.open(path).convert("RGB").resize((128, 128)) for path in paths]
            chosen = spread(images, IMAGES), spread(captions, IMAGES)
            fidelities = own_fidelities(pipeline, *chosen, pool=captions)
            named = [[subject for subject in SUBJECTS if subject in caption] for caption in captions]
            known = [(image, max(names, key=len)) for image, names in zip(images, named) if names]
            seen = judge(classifier, [image for image, _ in known])["subject"]
            share = share_right(seen, [name for _, name in known])
            print(f"| {style} | {fidelities[0]:.2f} | {fidelities[1]:.2f} | {share:.0%} |", flush=True)


if __name__ == "__main__":
    run_script(main)
