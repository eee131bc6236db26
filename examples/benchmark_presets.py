#!/usr/bin/env python
"""What trainings with the presets in this folder take of a card's memory, counted on tensors without data.

    python examples/benchmark_presets.py                     # all of them, some minutes
    python examples/benchmark_presets.py 8gb 8gb_sdxl

"encoding" is the most that the VAE, or the text encoders, take in float32 while pictures and prompts are encoded, before the UNet
comes; "step" the peak of a training step's tensors, as examples/benchmark.py counts it; "preview" that of decoding a preview
with all that the training holds meanwhile. On top come CUDA's own share and the workspaces of its libraries, half a GiB or so.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.script import ScriptParser, run_script

import torch
import yaml
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from benchmark import Step, parse_arguments
from benchmark_ways import Ours
from count_memory import counted, norms_as_on_a_gpu
from hypernet.errors import UserError
from hypernet.latents import PIXELS_AT_ONCE
from hypernet.preview import enable_tiling

PRESETS = [f"{card}{kind}" for kind in ("", "_sdxl") for card in ("6gb", "8gb", "t4_16gb", "h100")]
VAE = {  # of SD 1.x and SDXL alike
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT_ENCODERS = {
    "sd15": [{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}],
    "sdxl": [
        {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12},
        {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "projection_dim": 1280},
    ],
}
HALF = {"fp16": "float16", "bf16": "bfloat16"}


def count(preset: str) -> dict[str, int]:
    """The bytes at the peaks of encoding, a step, and the decoding of a preview."""
    options = yaml.safe_load(Path(__file__).with_name(f"{preset}.yaml").read_text())
    model = "sdxl" if "xl" in options["pretrained_model_name_or_path"] else "sd15"
    flags = ["--model", model, "--size", str(options["resolution"]), "--count_only"]
    flags += ["--dtype", HALF[options["mixed_precision"]], "--batch_size", str(options.get("train_batch_size", 1))]
    names = {"activation": "linear", "quantize": None, "use_8bit_adam": False}
    way = {name: options.get(name, default) for name, default in names.items()}
    way = Ours(checkpointing=options.get("gradient_checkpointing", False), **way)
    args, tiles = parse_arguments(flags), options.get("enable_tiling", False)
    return {"encoding": count_encoding(model, args.size), **count_training(args, way, tiles)}


def count_encoding(model, size) -> int:
    with counted() as memory:
        vae = AutoencoderKL(**VAE).requires_grad_(False)
        vae.encode(torch.randn(max(1, PIXELS_AT_ONCE["other"] // size**2), 3, size, size))
    with torch.device("meta"):
        encoders = [CLIPTextModel(CLIPTextConfig(**config)) for config in TEXT_ENCODERS[model]]
    weights = sum(weight.numel() for encoder in encoders for weight in encoder.parameters())
    return max(memory.peak, 4 * weights)


def count_training(args, way, tiles) -> dict[str, int]:
    with counted() as memory:
        step = Step(args, way, True, "cpu", args.dtype)
        norms_as_on_a_gpu(step.unet)
        step()
        memory.peak = memory.now
        step()
        of_a_step, memory.peak = memory.peak, memory.now
        vae = AutoencoderKL(**VAE).requires_grad_(False)
        if tiles:
            enable_tiling(vae)
        vae.decode(torch.randn(1, 4, args.size // 8, args.size // 8))
        return {"step": of_a_step, "preview": memory.peak}


def main(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; default: all")
    presets = parser.parse_args(arguments).presets or PRESETS
    for preset in presets:
        if preset not in PRESETS:
            raise UserError(f"{preset}: there is no such preset; choose of {', '.join(PRESETS)}")
    for preset in presets:
        peaks = ", ".join(f"{what} {size / 2**30:6.2f} GiB" for what, size in count(preset).items())
        print(f"{preset:14} {peaks} counted", flush=True)


if __name__ == "__main__":
    run_script(main)
