#!/usr/bin/env python
"""Generate images with a hypernetwork.

    python examples/generate.py --hypernetwork output/quickstart --prompt "a star on a blue background"
    python examples/generate.py --prompt "a star on a blue background <hypernet:openmoji:0.8>" --num_images 4 --seed -1
    python examples/generate.py --hypernetwork my_style.pt --model MODEL --sampler "DPM++ 2M Karras" --prompt "a cat"

A trained folder records its base model; for a WebUI file, name one with --model. The PNGs contain the WebUI's
description of how they were generated. Every image has its own seed and does not depend on the others.
"""

import argparse
import dataclasses
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import ScriptParser, check_output_folder, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import hypernet
from hypernet.cli.generation_options import (
    add_generation_options,
    choose_model,
    make_settings,
    model_options,
    pair_strengths,
    parse_count,
)
from hypernet.generation.generator import GenerationSettings, ImageGenerator, load_for_generation
from hypernet.generation.infotext import free_path, save_png
from hypernet.generation.prompt_tags import tag_name
from hypernet.utils.errors import UserError

MAX_NAME_BYTES = 180  # file systems allow 255


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the options.

    Raises:
        UserError: for options that cannot work.
    """
    parser = ScriptParser(__doc__)
    add_generation_options(parser)
    parser.add_argument("--num_images", type=parse_count, default=1, help="with seeds seed, seed + 1, ...; default: 1")
    parser.add_argument("--output_dir", type=Path, default=Path("output/generated"), help="default: %(default)s")
    args = parser.parse_args(arguments)
    if args.prompt is None:
        raise UserError("--prompt is missing; it says what to generate")
    check_output_folder(args.output_dir, f"--output_dir {args.output_dir}")
    return args


def file_name(settings: GenerationSettings) -> str:
    """Name an image after its prompt, its hypernetworks with their strengths, and its seed."""
    words = re.sub(r"\W+", "-", settings.prompt).strip("-")[:60]
    names = [f"{tag_name(path)}-{strength:g}" for path, strength in settings.hypernetworks]
    name = "-".join(filter(None, [words, *names])).encode()[:MAX_NAME_BYTES].decode(errors="ignore")
    return "-".join(filter(None, [name, f"seed{settings.seed}"])) + ".png"


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    seed = random.randrange(1 << 32) if args.seed == -1 else args.seed or 0  # -1 is a random seed, as in the WebUI
    stack = pair_strengths(args.hypernetwork or [], args.strength)
    settings = make_settings(args, args.prompt, stack, seed=seed)
    loaded = {path: hypernet.load_stack(path) for path, _ in settings.hypernetworks}
    source, guidance_scale = choose_model([settings], **model_options(args))
    if args.guidance_scale is None:
        settings = dataclasses.replace(settings, guidance_scale=guidance_scale)
    wanted = [dataclasses.replace(settings, seed=seed + i) for i in range(args.num_images)]

    generator = ImageGenerator(load_for_generation(source), loaded)
    for index, image in generator.generate_all(wanted, args.batch_size):
        text = generator.infotext(wanted[index], image)
        path = free_path(args.output_dir / file_name(wanted[index]), text)
        save_png(path, image, text)
        print(path, flush=True)


if __name__ == "__main__":
    run_script(main)
