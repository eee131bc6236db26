#!/usr/bin/env python
"""Count the GPU memory of training with each preset of examples/configs, on fake tensors.

    python examples/benchmarks/presets.py                     # all of them; some minutes
    python examples/benchmarks/presets.py 8gb 8gb_sdxl
    python examples/benchmarks/presets.py --plot examples/docs/images/presets.png

"encoding" is the most that the VAE or the text encoders take while they encode images and prompts, before the UNet is
on the device. The VAE encodes in float16, and that of SDXL, which overflows, in float32. "step" is the peak of a
training step's tensors. "preview" is the peak of decoding a preview, with everything training holds meanwhile. A run
counts the same before it begins (hypernet/training/memory_peaks.py). CUDA itself and the workspaces of its libraries
take another half GiB or so; examples/benchmarks/gpu_check.py measures what a GPU takes.
"""

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
from matplotlib.figure import Figure
from transformers import CLIPTextConfig, CLIPTextModel

from examples.benchmarks.ways import CONFIGS as UNETS
from hypernet.modeling.hypernetwork import WIDTHS_SD1
from hypernet.training.memory_counting import ADAMW_8BIT_STATE, ADAMW_STATE
from hypernet.training.memory_peaks import MemoryNeeds, MemoryPeaks, memory_peaks
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
WIDTHS = {"sd15": WIDTHS_SD1, "sdxl": (640, 1280, 2048)}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


def needs_of(preset: str) -> MemoryNeeds:
    """Return what determines the memory that a preset takes, on the model that it names."""
    options = yaml.safe_load((CONFIGS / f"{preset}.yaml").read_text())
    model = "sdxl" if "xl" in options["pretrained_model_name_or_path"] else "sd15"
    size = (options["resolution"], options["resolution"])
    with torch.device("meta"):
        encoders = [CLIPTextModel(CLIPTextConfig(**config)) for config in TEXT_ENCODERS[model]]
    return MemoryNeeds(
        unet=UNETS[model],
        vae=VAE,
        hypernetwork={"widths": WIDTHS[model], "activation": options.get("activation", "linear")},
        dtype=DTYPES[options["mixed_precision"]],
        vae_dtype=torch.float32 if model == "sdxl" else torch.float16,
        size=size,
        batch_size=options.get("train_batch_size", 1),
        preview_size=size,
        checkpointing=options.get("gradient_checkpointing", False),
        quantize=options.get("quantize"),
        tiling=options.get("enable_tiling", False),
        state_ratio=ADAMW_8BIT_STATE if options.get("use_8bit_adam") else ADAMW_STATE,
        encoder_bytes=sum(4 * weight.numel() for encoder in encoders for weight in encoder.parameters()),
    )


def draw_bars(counts: dict[str, MemoryPeaks]) -> Figure:
    """Draw three bars per preset, and a line at the memory of its card."""
    figure = Figure(figsize=(11, 0.75 * len(counts) + 1), dpi=110, layout="constrained")
    axis, height = figure.subplots(), 0.27
    for row, peaks in enumerate(counts.values()):
        for i, (name, size) in enumerate(vars(peaks).items()):
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
        counts[preset] = memory_peaks(needs_of(preset))
        peaks = ", ".join(f"{name} {size / 2**30:6.2f} GiB" for name, size in vars(counts[preset]).items())
        print(f"{preset:14} {peaks} counted", flush=True)
    if args.plot:
        draw_bars(counts).savefig(args.plot, format="png")


if __name__ == "__main__":
    run_script(main)
