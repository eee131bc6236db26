#!/usr/bin/env python
"""Measure the sizes of files and frozen UNets, and what LoRAs preserve of a hypernetwork.

    python examples/benchmarks/inference.py sizes                                      # SD 1.x files, frozen UNets
    python examples/benchmarks/inference.py lora output/quickstart --sheet lora.png    # LoRAs of several ranks

For the cost of a sampling step with attached and fused hypernetworks see examples/benchmarks/step.py.
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

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from PIL import Image

import hypernet
from examples.benchmarks.ways import CONFIGS
from hypernet.config import Quantization
from hypernet.formats.lora import peft_path, save_lora
from hypernet.formats.trained_folder import find_run_options
from hypernet.generation.generator import load_for_generation
from hypernet.modeling.lora_approximation import gather_contexts, to_lora
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.quantization import weight_bytes
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid

STRUCTURES = ((1, 2, 1), (1, 2, 2, 1))
QUANTIZATIONS: tuple[Quantization | None, ...] = (None, "int8", "nf4")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options.

    Raises:
        UserError: if the hypernetwork is missing.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument("what", choices=("sizes", "lora"))
    parser.add_argument("hypernetwork", nargs="?", help="lora: the output folder of a run")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4, 16, 64], help="lora: default: 1 4 16 64")
    parser.add_argument("--sheet", type=Path, metavar="PNG", help="lora: write a grid of images to this file")
    args = parser.parse_args(arguments)
    if args.what == "lora" and args.hypernetwork is None:
        raise UserError("lora: name the output folder of a run")
    return args


# --- Sizes


def file_sizes() -> dict[tuple[str, torch.dtype], int]:
    """Return the bytes of a WebUI file for SD 1.x, by layer structure and precision."""
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for structure in STRUCTURES:
            hypernetwork = hypernet.Hypernetwork(layer_structure=structure)
            for dtype in (torch.float32, torch.float16):
                path = Path(folder, "style.pt")
                hypernet.save(hypernetwork, path, dtype)
                sizes[",".join(map(str, structure)), dtype] = path.stat().st_size
    return sizes


def unet_sizes() -> dict[tuple[str, Quantization | None], int]:
    """Return the bytes of a frozen half-precision UNet's weights, by model and quantization."""
    sizes = {}
    for model, config in CONFIGS.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(config)
        for kind in QUANTIZATIONS:
            sizes[model, kind] = weight_bytes(unet, kind, torch.float16)
    return sizes


def print_sizes() -> None:
    for (structure, dtype), size in file_sizes().items():
        print(f"{structure:8} {str(dtype)[6:]:8} {size / 2**20:6.1f} MiB")
    for (model, kind), size in unet_sizes().items():
        print(f"UNet of {model:5} {'float16' if kind is None else f'--quantize {kind}':16} {size / 2**30:5.2f} GiB")


# --- LoRAs


def compare_loras(args: argparse.Namespace) -> None:
    """Print the shares of the perturbation that LoRAs keep, and write a grid of images made with them."""
    options = find_run_options(args.hypernetwork)
    prompts, hypernetwork = options["validation_prompt"], hypernet.load(args.hypernetwork)
    pipe = load_for_generation(ModelSource.from_options(options)).pipeline
    pipe.set_progress_bar_config(disable=True)
    diffusers_logging.set_verbosity_error()  # hide that the LoRA has no weights for the text encoder
    call = {"num_inference_steps": 20, "guidance_scale": options["validation_guidance_scale"]}

    def generate() -> list[Image.Image]:
        generators = [torch.Generator().manual_seed(1) for _ in prompts]
        return pipe(prompts, generator=generators, **call).images

    columns = {"without": generate()}
    hypernet.attach(pipe.unet, hypernetwork)
    columns["hypernetwork"] = generate()
    hypernet.detach(pipe.unet)
    contexts = gather_contexts(pipe, hypernetwork, prompts, **call)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "lora.safetensors")
        for rank in args.ranks:
            lora = to_lora(pipe.unet, hypernetwork, rank, contexts)
            save_lora(lora, path)
            for form, file in (("kohya", path), ("PEFT", peft_path(path))):
                kept = "  ".join(f"{width}: {share[form.lower()]:6.1%}" for width, share in sorted(lora.kept.items()))
                size = file.stat().st_size / 2**20
                print(f"rank {rank:4} {form:5}  kept by width  {kept}  {size:.2f} MiB")
            pipe.load_lora_weights(folder, weight_name=path.name)
            columns[f"LoRA, rank {rank}"] = generate()
            pipe.unload_lora_weights()
    errors = "  ".join(f"{width}: {share:.1%}" for width, share in sorted(lora.fit_errors.items()))
    print(f"missed by the closest linear maps  {errors}")
    if args.sheet:
        rows = [list(row) for row in zip(*columns.values())]
        labeled_grid(rows, prompts, list(columns)).save(args.sheet)
        print(args.sheet)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.what == "sizes":
        print_sizes()
    else:
        compare_loras(args)


if __name__ == "__main__":
    run_script(main)
