#!/usr/bin/env python
"""What trainings with the presets in this folder take of a card's memory, counted on tensors without data.

    python examples/benchmark_presets.py                     # all of them, some minutes
    python examples/benchmark_presets.py 8gb 8gb_sdxl

"step" is the peak of a training step's tensors as examples/benchmark.py counts it, "preview" that of decoding a preview with all
that the training holds meanwhile. On top come CUDA's own share and the workspaces of its libraries, half a GiB or so.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.script import ScriptParser, run_script

import torch
import yaml
from diffusers import AutoencoderKL

from benchmark import DTYPES, Ours, Step, parse_arguments
from count_memory import counted, norms_as_on_a_gpu
from hypernet.preview import enable_tiling

PRESETS = [f"{card}{kind}" for kind in ("", "_sdxl") for card in ("6gb", "8gb", "t4_16gb", "h100")]
VAE = {  # of SD 1.x and SDXL alike
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
HALF = {"fp16": "float16", "bf16": "bfloat16"}


def count(preset: str) -> tuple[int, int]:
    """(bytes of a step, bytes while a preview is decoded) at their peaks."""
    options = yaml.safe_load(Path(__file__).with_name(f"{preset}.yaml").read_text())
    model, dtype = (
        "sdxl" if "xl" in options["pretrained_model_name_or_path"] else "sd15",
        HALF[options["mixed_precision"]],
    )
    flags = ["--model", model, "--size", str(options["resolution"]), "--dtype", dtype, "--count_only"]
    args = parse_arguments([*flags, "--batch_size", str(options.get("train_batch_size", 1))])
    names = ("activation", "quantize", "use_8bit_adam")
    way = Ours(
        checkpointing="gradient_checkpointing" in options, **{name: options[name] for name in names if name in options}
    )
    with counted() as memory:
        step = Step(args, way, True, "cpu", DTYPES[dtype])
        norms_as_on_a_gpu(step.unet)
        step()
        memory.peak = memory.now
        step()
        of_a_step, memory.peak = memory.peak, memory.now
        vae = AutoencoderKL(**VAE).eval().requires_grad_(False)
        if options.get("enable_tiling"):
            enable_tiling(vae)
        vae.decode(torch.randn(1, 4, args.size // 8, args.size // 8))
        return of_a_step, memory.peak


def main(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; default: all")
    for preset in parser.parse_args(arguments).presets or PRESETS:
        step, preview = (size / 2**30 for size in count(preset))
        print(f"{preset:14} step {step:6.2f} GiB, preview {preview:6.2f} GiB counted", flush=True)


if __name__ == "__main__":
    run_script(main)
