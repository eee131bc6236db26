#!/usr/bin/env python
"""What trainings with the presets in this folder take of a card's memory, counted on tensors without data.

    python examples/benchmarks/presets.py                     # all of them, some minutes
    python examples/benchmarks/presets.py 8gb 8gb_sdxl
    python examples/benchmarks/presets.py --plot examples/docs/images/presets.png

"encoding" is the most that the VAE, or the text encoders, take in float32 while pictures and prompts are encoded, before the UNet
comes; "step" the peak of a training step's tensors, as examples/benchmarks/step.py counts it; "preview" that of decoding a preview
with all that the training holds meanwhile. On top come CUDA's own share and the workspaces of its libraries, half a GiB or so.
"""

import re
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
CONFIGS = REPO / "examples" / "configs"
sys.path.insert(0, str(REPO))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import torch
import yaml
from diffusers import AutoencoderKL
from matplotlib.figure import Figure
from transformers import CLIPTextConfig, CLIPTextModel

from examples.benchmarks.memory import counted, norms_as_on_a_gpu
from examples.benchmarks.step import Step, parse_arguments
from examples.benchmarks.ways import Ours
from hypernet.cli.script import ScriptParser, run_script
from hypernet.data.latents import PIXELS_AT_ONCE
from hypernet.training.previews import enable_tiling
from hypernet.utils.errors import UserError

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
    options = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())
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


def draw_bars(counts: dict[str, dict[str, int]]) -> Figure:
    """Three bars for each preset, and a line where its card ends."""
    figure = Figure(figsize=(11, 0.75 * len(counts) + 1), dpi=110, layout="constrained")
    axis, height = figure.subplots(), 0.27
    for row, peaks in enumerate(counts.values()):
        for i, (what, size) in enumerate(peaks.items()):
            label = what if row == 0 else None
            axis.barh(row + (i - 1) * height, size / 2**30, height, color=f"C{i}", label=label)
    cards = [int(found[1]) if (found := re.search(r"(\d+)gb", preset)) else None for preset in counts]
    for row, card in enumerate(cards):
        if card:
            axis.plot([card, card], [row - 0.42, row + 0.42], color="0.2", label="the card" if row == 0 else None)
    axis.set(yticks=range(len(counts)), yticklabels=counts, xlabel="GiB, counted", ylim=(len(counts) - 0.5, -0.5))
    axis.grid(axis="x", color="0.9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper right")
    return figure


def main(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them, too")
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; default: all")
    args, counts = parser.parse_args(arguments), {}
    presets = args.presets or PRESETS
    for preset in presets:
        if preset not in PRESETS:
            raise UserError(f"{preset}: there is no such preset; choose of {', '.join(PRESETS)}")
    for preset in presets:
        counts[preset] = count(preset)
        peaks = ", ".join(f"{what} {size / 2**30:6.2f} GiB" for what, size in counts[preset].items())
        print(f"{preset:14} {peaks} counted", flush=True)
    if args.plot:
        draw_bars(counts).savefig(args.plot, format="png")


if __name__ == "__main__":
    run_script(main)
