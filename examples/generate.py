#!/usr/bin/env python
"""Draw with a hypernetwork.

    python examples/generate.py --hypernetwork output/quickstart --prompt "a red star on a blue background"
    python examples/generate.py --prompt "a red star on a blue background <hypernet:neon:0.8>" --num_images 4 --seed -1
    python examples/generate.py --hypernetwork my_style.pt --model MODEL --sampler "DPM++ 2M Karras" --prompt "a cat"

A trained folder has_good_state the model that it was trained on; for a WebUI file name the model with --model. The PNGs carry
the WebUI's text on how they were made. Every image has a seed of its own and is the same whatever is drawn beside it.
"""

import dataclasses
import random
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import hypernet
from hypernet.cli.generation_options import add_generation_options, choose_model, make_settings, parse_count, read_stack
from hypernet.cli.script import ScriptParser, run_script
from hypernet.generation.generator import GenerationSettings, ImageGenerator, load_for_generation
from hypernet.generation.infotext import free_path, save_png
from hypernet.generation.prompt_tags import tag_name
from hypernet.utils.atomic_files import check_writable
from hypernet.utils.errors import UserError

MOST_BYTES = 180  # of a file's name; file systems take 255


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    add_generation_options(parser)
    parser.add_argument("--num_images", type=parse_count, default=1, help="with the seeds seed, seed + 1, ...")
    parser.add_argument("--output_dir", type=Path, default=Path("output/generated"), help="default: %(default)s")
    args = parser.parse_args(arguments)
    if args.prompt is None:
        raise UserError("--prompt is missing: what shall be drawn?")
    try:
        check_writable(args.output_dir)
    except OSError as error:
        raise UserError(f"--output_dir {args.output_dir}: it cannot be written ({error.strerror})") from None
    return args


def file_name(picture: GenerationSettings) -> str:
    """Words of the prompt, then each hypernetwork with its strength, then the seed."""
    words = re.sub(r"\W+", "-", picture.prompt).strip("-")[:60]
    names = [f"{tag_name(path)}-{strength:g}" for path, strength in picture.hypernetworks]
    name = "-".join(filter(None, [words, *names])).encode()[:MOST_BYTES].decode(errors="ignore")
    return "-".join(filter(None, [name, f"seed{picture.seed}"])) + ".png"


def main(arguments=None):
    args = parse_arguments(arguments)
    seed = random.randrange(1 << 32) if args.seed == -1 else args.seed or 0  # -1 is the WebUI's word for any
    picture = make_settings(args, args.prompt, read_stack(args, args.hypernetwork), seed=seed)
    loaded = {path: hypernet.load(path) for path, _ in picture.hypernetworks}
    source, guidance = choose_model(args, [picture])
    if args.guidance_scale is None:
        picture = dataclasses.replace(picture, guidance_scale=guidance)
    pictures = [dataclasses.replace(picture, seed=seed + i) for i in range(args.num_images)]

    generator = ImageGenerator(load_for_generation(source), loaded)
    for index, image in generator.generate_all(pictures, args.batch_size):
        text = generator.infotext(pictures[index], image)
        path = free_path(args.output_dir / file_name(pictures[index]), text)
        save_png(path, image, text)
        print(path, flush=True)


if __name__ == "__main__":
    run_script(main)
