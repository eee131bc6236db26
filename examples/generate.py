#!/usr/bin/env python
"""Draw with a hypernetwork.

    python examples/generate.py --hypernetwork output/quickstart --prompt "a red star on a blue background"
    python examples/generate.py --hypernetwork my_style.pt --strength 0.8 --num_images 4 --model MODEL --prompt "a cat"

A trained folder remembers the model that it was trained on; for a WebUI file name the model with --model.
"""

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.script import ScriptParser, run_script

import torch
from diffusers import DiffusionPipeline

import hypernet
from hypernet.errors import UserError


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("--hypernetwork", required=True, help="a trained folder, a checkpoint, a .pt, or a Hub id")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--negative_prompt", default=None)
    parser.add_argument("--strength", type=float, default=1.0, help="0 is the plain model")
    parser.add_argument("--model", default=None, help="folder or Hub id; default: the one it was trained on")
    parser.add_argument("--num_images", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the first image; the next ones have the next seeds")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--guidance_scale", type=float, default=None, help="default: that of the training's previews")
    parser.add_argument("--size", type=int, default=None, help="side in pixels; default: the model's own")
    parser.add_argument("--output_dir", type=Path, default=Path("output/generated"))
    return parser.parse_args(arguments)


def training_options(hypernetwork) -> dict:
    """What the run that made this folder, or checkpoint, was told; nothing for a file."""
    for folder in (Path(hypernetwork), *Path(hypernetwork).parents[:2]):
        if (folder / "run.json").is_file():
            return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return {}


def load_pipeline(model, **files):
    if not model:
        raise UserError("--model is missing: the hypernetwork's file does not say where the model lies")
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    try:
        pipe = DiffusionPipeline.from_pretrained(
            model, dtype=dtype, safety_checker=None, requires_safety_checker=False, **files
        )
    except (OSError, ValueError) as error:
        raise UserError(f"--model {model}: it cannot be loaded ({' '.join(str(error).split())})") from None
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


def main(arguments=None):
    args = parse_arguments(arguments)
    if min(args.num_images, args.steps) < 1 or args.size is not None and (args.size < 1 or args.size % 8):
        raise UserError("--num_images and --steps must be 1 or more, --size a multiple of 8")
    hypernetwork = hypernet.load(args.hypernetwork)
    trained = training_options(args.hypernetwork)
    files = {} if args.model else {key: trained.get(key) for key in ("revision", "variant")}
    pipe = load_pipeline(args.model or trained.get("pretrained_model_name_or_path"), **files)
    hypernet.attach(pipe.unet, hypernetwork, args.strength)
    guidance = args.guidance_scale
    images = pipe(
        args.prompt,
        negative_prompt=args.negative_prompt,
        num_images_per_prompt=args.num_images,
        generator=[torch.Generator().manual_seed(args.seed + i) for i in range(args.num_images)],
        num_inference_steps=args.steps,
        guidance_scale=trained.get("validation_guidance_scale", 7.5) if guidance is None else guidance,
        height=args.size,
        width=args.size,
    ).images
    args.output_dir.mkdir(parents=True, exist_ok=True)
    words = re.sub(r"\W+", "-", args.prompt).strip("-")[:60]
    for i, image in enumerate(images):
        path = args.output_dir / f"{words}-{hypernetwork.config.name}-{args.strength:g}-seed{args.seed + i}.png"
        image.save(path)
        print(path)


if __name__ == "__main__":
    run_script(main)
