#!/usr/bin/env python
"""Count the GPU memory of training with each preset of examples/configs, on fake tensors.

    python examples/benchmarks/presets.py                     # all of them; some minutes
    python examples/benchmarks/presets.py 8gb 8gb_sdxl
    python examples/benchmarks/presets.py --plot examples/docs/images/presets.png

"encoding" is the most that the VAE or the text encoders take in float32 while they encode images and prompts, before
the UNet is on the device. "step" is the peak of a training step's tensors, as examples/benchmarks/step.py counts it.
"preview" is the peak of decoding a preview, with everything training holds meanwhile. CUDA itself and the workspaces of
its libraries take another half GiB or so.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import torch
import yaml
from diffusers import AutoencoderKL
from matplotlib.figure import Figure
from transformers import CLIPTextConfig, CLIPTextModel

from examples.benchmarks.memory import compute_norms_in_float32, count_peak_memory
from examples.benchmarks.step import Step, parse_arguments
from examples.benchmarks.ways import Ours
from hypernet.data.latents import PIXELS_AT_ONCE
from hypernet.training.previews import enable_tiling
from hypernet.utils.errors import UserError

CONFIGS = REPO / "examples" / "configs"
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
DTYPES = {"fp16": "float16", "bf16": "bfloat16"}
Peaks = dict[str, int]  # "encoding", "step", "preview" -> bytes


def count_peaks(preset: str) -> Peaks:
    """Return the peak memory of encoding, of a step, and of decoding a preview."""
    options = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())
    model = "sdxl" if "xl" in options["pretrained_model_name_or_path"] else "sd15"
    flags = ["--model", model, "--size", str(options["resolution"]), "--count_only"]
    flags += ["--dtype", DTYPES[options["mixed_precision"]], "--batch_size", str(options.get("train_batch_size", 1))]
    way = Ours(
        activation=options.get("activation", "linear"),
        checkpointing=options.get("gradient_checkpointing", False),
        quantize=options.get("quantize"),
        use_8bit_adam=options.get("use_8bit_adam", False),
    )
    args, tiling = parse_arguments(flags), options.get("enable_tiling", False)
    return {"encoding": count_encoding(model, args.size), **count_training(args, way, tiling)}


def count_encoding(model: str, size: int) -> int:
    """Return the peak memory of encoding images and prompts in float32."""
    with count_peak_memory() as memory:
        vae = AutoencoderKL(**VAE).requires_grad_(False)
        vae.encode(torch.randn(max(1, PIXELS_AT_ONCE["other"] // size**2), 3, size, size))
    with torch.device("meta"):
        encoders = [CLIPTextModel(CLIPTextConfig(**config)) for config in TEXT_ENCODERS[model]]
    weights = sum(weight.numel() for encoder in encoders for weight in encoder.parameters())
    return max(memory.peak, 4 * weights)


def count_training(args: argparse.Namespace, way: Ours, tiling: bool) -> Peaks:
    """Return the peak memory of a step, and of decoding a preview after it."""
    with count_peak_memory() as memory:
        step = Step(args, way, True, "cpu", args.dtype)
        compute_norms_in_float32(step.unet)
        step()
        memory.peak = memory.now
        step()
        step_peak, memory.peak = memory.peak, memory.now
        vae = AutoencoderKL(**VAE).requires_grad_(False)
        if tiling:
            enable_tiling(vae)
        vae.decode(torch.randn(1, 4, args.size // 8, args.size // 8))
        return {"step": step_peak, "preview": memory.peak}


def draw_bars(counts: dict[str, Peaks]) -> Figure:
    """Draw three bars per preset, and a line at the memory of its card."""
    figure = Figure(figsize=(11, 0.75 * len(counts) + 1), dpi=110, layout="constrained")
    axis, height = figure.subplots(), 0.27
    for row, peaks in enumerate(counts.values()):
        for i, (name, size) in enumerate(peaks.items()):
            label = name if row == 0 else None
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


def main(arguments: Sequence[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="also draw them as bars")
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"{', '.join(PRESETS)}; default: all")
    args = parser.parse_args(arguments)
    presets, counts = args.presets or PRESETS, {}
    if unknown := [preset for preset in presets if preset not in PRESETS]:
        raise UserError(f"{unknown[0]}: there is no such preset; choose from {', '.join(PRESETS)}")
    for preset in presets:
        counts[preset] = count_peaks(preset)
        peaks = ", ".join(f"{name} {size / 2**30:6.2f} GiB" for name, size in counts[preset].items())
        print(f"{preset:14} {peaks} counted", flush=True)
    if args.plot:
        draw_bars(counts).savefig(args.plot, format="png")


if __name__ == "__main__":
    run_script(main)
