#!/usr/bin/env python
"""Measure the cost of data loading on the quickstart's model and images: what is encoded, and time spent waiting.

    python examples/benchmarks/data.py                     # about a minute on two cores
    python examples/benchmarks/data.py --json

examples/benchmarks/scale.py measures large folders, examples/benchmarks/encoding.py several processes.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

import hypernet
from examples.quickstart.tools.shapes import caption, draw, random_shape
from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import TrainingDataset, build_loader, encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import open_image_source
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.loss import training_loss

STEPS = 150
CONFIG = REPO / "examples" / "configs" / "quickstart.yaml"
IMAGES, MODEL = (REPO / "examples" / "quickstart" / name for name in ("images", "model"))
PreparedData = tuple[TrainingConfig, TrainingDataset, list[ImageRecord]]


def draw_images(folder: Path, count: int, size: int = 64, start: int = 0) -> None:
    """Draw images, each with a caption of its own, so that every prompt must be encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + count):
        shape = random_shape(i)
        draw(shape, size).save(folder / f"{i:06d}.png")
        (folder / f"{i:06d}.txt").write_text(f"{caption(shape)}, number {i}")


def training_flags(folder: Path, cache: Path, *more: str) -> list[str]:
    once = "--random_flip=false"  # mirrored images are encoded, too
    return ["--config", str(CONFIG), once, f"--train_data_dir={folder}", f"--cache_dir={cache}", *more]


def prepare_data(models: StableDiffusion, folder: Path, cache: Path, *more: str) -> PreparedData:
    """Prepare the data as a run does before its first step."""
    config = parse_config(training_flags(folder, cache, *more))
    source = open_image_source(config)
    records, _ = index_images(source, config, models.base.image_multiple)
    return config, encode_dataset(models, source, records, config, torch.float32), records


# --- Encoding


def count_encodes(models: StableDiffusion, work: Path) -> dict[str, tuple[int, int]]:
    """Return, for each kind of start, the number of images the VAE encodes and of prompts the text encoder encodes."""
    folder, cache, counts = work / "images", work / "cache", [0, 0]
    shutil.copytree(IMAGES, folder)
    layer = next(module for name, module in models.text_encoders[0].named_modules() if name.endswith("layers.0"))

    def count(index: int) -> Callable:
        return lambda module, args: counts.__setitem__(index, counts[index] + len(args[0]))

    hooks = [models.vae.encoder.register_forward_pre_hook(count(0)), layer.register_forward_pre_hook(count(1))]

    def start() -> tuple[int, int]:
        counts[:] = 0, 0
        prepare_data(models, folder, cache)
        return counts[0], counts[1]

    found = {"first start, 32 images": start(), "second start": start()}
    draw_images(folder, 3, 128, start=100)
    found["3 images added"] = start()
    (folder / "000100.txt").write_text("another caption")
    found["one caption changed"] = start()
    for hook in hooks:
        hook.remove()
    return found


def largest_error(models: StableDiffusion, work: Path) -> float:
    """Return the largest difference between the latents used in training and `vae.encode` of the same pixels."""
    _, dataset, _ = prepare_data(models, IMAGES, work / "cache")
    errors = []
    for index, path in enumerate(sorted(IMAGES.glob("*.png"))):
        array = np.array(Image.open(path).convert("RGB"))
        pixels = torch.from_numpy(array).permute(2, 0, 1)[None].contiguous() / 127.5 - 1  # (1, 3, height, width)
        with torch.no_grad():
            latents = models.vae.encode(pixels).latent_dist.mean[0] * models.vae.config.scaling_factor
        errors.append((dataset.latents.sample(index, 0, 0, None) - latents).abs().max().item())
    return max(errors)


# --- Steps


class Stepper:
    """Runs the quickstart's training steps on one dataset, and times the wait for each batch."""

    def __init__(self, models: StableDiffusion, accelerator: Accelerator, data: PreparedData):
        config, self.dataset, records = data
        self.models = models
        hypernetwork = hypernet.Hypernetwork(models.base.context_widths, layer_structure=[1, 2, 1], activation="swish")
        self.model = hypernet.HypernetworkUNet(models.unet, hypernetwork)
        self.optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-5)
        batches = EpochBatchSampler(records, config.train_batch_size, config.seed)
        self.stream = iter(build_loader(accelerator, self.dataset, batches))

    def step(self) -> tuple[float, float]:
        """Return the seconds spent waiting for the batch, and the seconds of the whole step."""
        started = time.perf_counter()
        batch = next(self.stream)
        waited = time.perf_counter() - started
        conditions = self.dataset.conditions(batch)
        training_loss(self.model, batch, conditions, self.models.scheduler, torch.float32).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return waited, time.perf_counter() - started

    def close(self) -> None:
        """Detach the hypernetwork, since only one may be attached at a time."""
        hypernet.detach(self.models.unet)


def waiting_share(models: StableDiffusion, accelerator: Accelerator, work: Path) -> float:
    """Return the share of a quickstart step that is spent waiting for its batch."""
    stepper = Stepper(models, accelerator, prepare_data(models, IMAGES, work / "cache"))
    times = [stepper.step() for _ in range(STEPS + 10)][10:]
    stepper.close()
    return sum(waited for waited, _ in times) / sum(total for _, total in times)


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    args = parser.parse_args()
    figures: dict[str, Any] = {}

    def add(name: str, value: Any) -> None:
        figures[name] = value
        if not args.json:
            print_figures({name: value})

    accelerator, models = Accelerator(), load_stable_diffusion(identify_base_model(ModelSource(str(MODEL))))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        add("encodes (images, prompts)", count_encodes(models, work))
        add("largest difference from vae.encode", largest_error(models, work))
        add("waiting for data, share of a step", waiting_share(models, accelerator, work))
    if args.json:
        print(json.dumps(figures, indent=2))


def print_figures(figures: dict[str, Any], indent: str = "") -> None:
    """Print nested figures, one line each."""
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            print_figures(value, indent + "  ")
        else:
            print(f"{indent}{name:<36}{f'{value:.3g}' if isinstance(value, float) else value}", flush=True)


if __name__ == "__main__":
    run_script(main)
