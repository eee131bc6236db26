#!/usr/bin/env python
"""Measure the cost of data loading: VAE and text encoder calls, memory, time spent waiting, startup. Linux only.

    python examples/benchmarks/data.py                     # about ten minutes on two cores
    python examples/benchmarks/data.py --images 2000 --json

Uses the quickstart's model and images, and images drawn on the spot. Times are reported as ratios, so that the
speed of the machine hardly matters.
"""

import json
import random
import shutil
import statistics
import subprocess
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
from examples.quickstart.tools.draw import caption, draw, random_scene
from hypernet.cli.generation_options import parse_count
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

FEW, STARTS, STEPS = 200, 3, 150
CONFIG = REPO / "examples" / "configs" / "quickstart.yaml"
IMAGES, MODEL = (REPO / "examples" / "quickstart" / name for name in ("images", "model"))
RUN = """
import json, sys
sys.path.insert(0, sys.argv.pop(1))
import train_hypernetwork
from hypernet.cli.training_options import parse_config
train_hypernetwork.main(parse_config(sys.argv[1:]))
memory = [line for line in open("/proc/self/status") if line.startswith(("VmRSS", "RssAnon"))]
print(json.dumps({line.split(":")[0]: int(line.split()[1]) for line in memory}))
"""
PreparedData = tuple[TrainingConfig, TrainingDataset, list[ImageRecord]]


def draw_images(folder: Path, count: int, size: int = 64, start: int = 0) -> None:
    """Draw images, each with a caption of its own, so that every prompt must be encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(start)
    for i in range(start, start + count):
        scene = random_scene(rng)
        draw(scene, "neon", size=size).save(folder / f"{i:06d}.png")
        (folder / f"{i:06d}.txt").write_text(f"{caption(scene)}, number {i}")


def training_flags(folder: Path, cache: Path, *more: str) -> list[str]:
    return ["--config", str(CONFIG), f"--train_data_dir={folder}", f"--cache_dir={cache}", *more]


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
        hypernetwork = hypernet.Hypernetwork([48, 80, 96, 128], layer_structure=[1, 2, 1], activation="swish")
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


def step_ratio(models: StableDiffusion, accelerator: Accelerator, folders: tuple[Path, Path], cache: Path) -> float:
    """Return the median step time on the second folder relative to the first, alternating between the two."""
    prepared = [prepare_data(models, folder, cache, "--resolution=64") for folder in folders]
    times: list[list[float]] = [[], []]
    for _ in range(6):
        for index, data in enumerate(prepared):
            stepper = Stepper(models, accelerator, data)
            times[index] += [stepper.step()[1] for _ in range(STEPS // 3)][5:]
            stepper.close()
    return statistics.median(times[1]) / statistics.median(times[0])


# --- Whole runs


def run(folder: Path, cache: Path, output: Path, steps: int) -> tuple[float, float, float]:
    """Run the training script in its own process.

    Returns:
        Its duration in seconds, its resident memory in MB at the end, and the part of it not mapped from files.
    """
    flags = ["--resolution=64", f"--max_train_steps={steps}", f"--output_dir={output}", "--overwrite"]
    flags += ["--logging_steps=1000", "--validation_steps=1000000"]
    command = [sys.executable, "-c", RUN, str(REPO), *training_flags(folder, cache, *flags)]
    started = time.perf_counter()
    completed = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if completed.returncode:
        raise RuntimeError(completed.stderr[-3000:])
    memory = json.loads(completed.stdout.splitlines()[-1])  # in kB
    return seconds, memory["VmRSS"] / 1000, memory["RssAnon"] / 1000


def compare_runs(folders: tuple[Path, Path], cache: Path, work: Path) -> dict[str, float]:
    """Compare startup time and memory of runs on the two folders, second to first, with everything cached."""
    seconds: list[list[float]] = [[], []]
    for _ in range(STARTS):
        for index, folder in enumerate(folders):
            seconds[index].append(run(folder, cache, work / "output", 1)[0])
    (_, few_resident, few_anonymous), (_, many_resident, many_anonymous) = (
        run(folder, cache, work / "output", STEPS) for folder in folders
    )
    return {
        "warm start, ratio": statistics.median(seconds[1]) / statistics.median(seconds[0]),
        "resident memory, MB more": many_resident - few_resident,
        "without mapped files, MB more": many_anonymous - few_anonymous,
    }


def main() -> None:
    parser = ScriptParser(__doc__)
    images_help = f"number of images to compare with {FEW}; default: %(default)s"
    parser.add_argument("--images", type=parse_count, default=20_000, help=images_help)
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
        few, many, cache = work / "few", work / "many", work / "cache64"
        draw_images(few, FEW)
        draw_images(many, args.images)
        compared = {"step, ratio": step_ratio(models, accelerator, (few, many), cache)}
        compared |= compare_runs((few, many), cache, work)
        add(f"{args.images} images compared with {FEW}", compared)
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
