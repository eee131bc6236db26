#!/usr/bin/env python
"""What the data cost: how often VAE and text encoder run, memory, waiting, the start of a run. On Linux.

    python examples/benchmarks/data.py                     # about ten minutes on two cores
    python examples/benchmarks/data.py --images 2000 --json

Uses the quickstart's model and pictures that it draws. Times are ratios measured side by side, in turns; the rest are counts.
"""

import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
EXAMPLES = REPO / "examples"
sys.path.insert(0, str(REPO))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image

import hypernet
from examples.quickstart.tools.draw import caption, draw, random_scene
from hypernet.cli.script import ScriptParser, run_script
from hypernet.cli.training_options import parse_config
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import build_loader, encode_dataset
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.loss import diffusion_loss, prediction_target

FEW, STARTS, STEPS = 200, 3, 150
CONFIG, PICTURES, MODEL = EXAMPLES / "configs" / "quickstart.yaml", EXAMPLES / "quickstart" / "images", EXAMPLES / "quickstart" / "model"
RUN = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import train_hypernetwork
train_hypernetwork.main(parse_config(sys.argv[1:]))
print({line.split(":")[0]: int(line.split()[1]) for line in open("/proc/self/status") if "Rss" in line or "VmRSS" in line})
"""


def draw_pictures(folder: Path, count: int, size=64, start=0):
    """Pictures with captions of their own, so that every prompt has to be encoded."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(start)
    for i in range(start, start + count):
        scene = random_scene(rng)
        draw(scene, "neon", size=size).save(folder / f"{i:06d}.png")
        (folder / f"{i:06d}.txt").write_text(f"{caption(scene)}, number {i}")


def options(folder: Path, cache: Path, *more):
    return ["--config", str(CONFIG), f"--train_data_dir={folder}", f"--cache_dir={cache}", *more]


def prepare(models, folder, cache, *more):
    """(config, dataset, pictures) as the training has them before its first step."""
    config = parse_config(options(folder, cache, *more))
    source = open_image_source(config)
    pictures, _ = index_images(source, config, models.base.image_multiple)
    dataset = encode_dataset(models, source, pictures, config, torch.float32)
    return config, dataset, pictures


# --- What is encoded


def count_encodes(models, work: Path) -> dict:
    """{kind of start: (images that the VAE encodes, prompts that the text encoder encodes)}."""
    folder, cache, counts = work / "pictures", work / "cache", [0, 0]
    shutil.copytree(PICTURES, folder)
    layer = next(module for name, module in models.text_encoders[0].named_modules() if name.endswith("layers.0"))

    def count(which):
        return lambda module, args: counts.__setitem__(which, counts[which] + len(args[0]))

    hooks = [models.vae.encoder.register_forward_pre_hook(count(0)), layer.register_forward_pre_hook(count(1))]

    def start():
        counts[:] = 0, 0
        prepare(models, folder, cache)
        return tuple(counts)

    found = {"first start, 32 images": start(), "second start": start()}
    draw_pictures(folder, 3, 128, start=100)
    found["3 images more"] = start()
    (folder / "000100.txt").write_text("another caption")
    found["another caption"] = start()
    for hook in hooks:
        hook.remove()
    return found


def largest_errors(models, work: Path) -> float:
    """The largest difference between the latents that training gets and vae.encode of the same pixels."""
    _, dataset, _ = prepare(models, PICTURES, work / "cache")
    errors = []
    for index, path in enumerate(sorted(PICTURES.glob("*.png"))):
        pixels = (
            torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].contiguous() / 127.5 - 1
        )
        with torch.no_grad():
            latents = models.vae.encode(pixels).latent_dist.mean[0] * models.vae.config.scaling_factor
        errors.append((dataset.latents.sample(index, 0, 0, None) - latents).abs().max().item())
    return max(errors)


# --- Steps


class Stepper:
    """Training steps of the quickstart on one data set, in which the wait for data is timed apart."""

    def __init__(self, models, accelerator, config, dataset, pictures):
        self.models, self.scheduler = models, models.scheduler
        network = hypernet.Hypernetwork([48, 80, 96, 128], layer_structure=[1, 2, 1], activation="swish")
        self.model = hypernet.HypernetworkUNet(models.unet, network)
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5)
        batches = EpochBatchSampler(pictures, config.train_batch_size, config.seed)
        self.stream = iter(build_loader(accelerator, dataset, batches))

    def step(self):
        """(seconds waited for the batch, seconds in all)."""
        started = time.perf_counter()
        batch = next(self.stream)
        waited = time.perf_counter() - started
        latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]
        noisy = self.scheduler.add_noise(latents, noise, timesteps)
        prediction = self.model(noisy, timesteps, **batch["conditions"])
        target = prediction_target(self.scheduler, latents, noise, timesteps)
        diffusion_loss(prediction, target, batch["weights"]).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return waited, time.perf_counter() - started

    def close(self):
        hypernet.detach(self.models.unet)


def waiting_share(models, accelerator, work: Path) -> float:
    """The share of a quickstart step that is spent on waiting for its batch."""
    stepper = Stepper(models, accelerator, *prepare(models, PICTURES, work / "cache"))
    times = [stepper.step() for _ in range(STEPS + 10)][10:]
    stepper.close()
    return sum(waited for waited, _ in times) / sum(total for _, total in times)


def step_ratio(models, accelerator, few: Path, many: Path, cache: Path) -> float:
    """The median time of a step on many images over that on few, steps taken in turns."""
    size = "--resolution=64"
    prepared = [prepare(models, folder, cache, size) for folder in (few, many)]
    times = [[], []]
    for _ in range(6):  # only one hypernetwork is on the UNet at a time
        for which, data in enumerate(prepared):
            stepper = Stepper(models, accelerator, *data)
            times[which] += [stepper.step()[1] for _ in range(STEPS // 3)][5:]
            stepper.close()
    return statistics.median(times[1]) / statistics.median(times[0])


# --- Whole runs


def run(folder: Path, cache: Path, output: Path, steps: int):
    """(seconds, resident memory in MB at the end, the part of it that is no mapped file) of a run of the script."""
    flags = [
        "--resolution=64",
        f"--max_train_steps={steps}",
        f"--output_dir={output}",
        "--overwrite",
        "--logging_steps=1000",
    ]
    flags += [f"--validation_steps={10**6}"]
    command = [sys.executable, "-c", RUN, str(REPO), *options(folder, cache, *flags)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    memory = json.loads(done.stdout.splitlines()[-1].replace("'", '"'))
    return seconds, memory["VmRSS"] / 1000, memory["RssAnon"] / 1000


def compare_runs(few: Path, many: Path, cache: Path, work: Path) -> dict:
    warm = [[], []]
    for _ in range(STARTS):
        for which, folder in enumerate((few, many)):
            warm[which].append(run(folder, cache, work / "output", 1)[0])
    memory = [run(folder, cache, work / "output", STEPS)[1:] for folder in (few, many)]
    return {
        "warm start, ratio": statistics.median(warm[1]) / statistics.median(warm[0]),
        "resident memory, MB more": memory[1][0] - memory[0][0],
        "without mapped files, MB more": memory[1][1] - memory[0][1],
    }


def main():
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", type=int, default=20_000, help=f"how many to compare {FEW} with")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    figures = {}

    def note(name, value):
        figures[name] = value
        if not arguments.json:
            show({name: value})

    accelerator, models = Accelerator(), load_stable_diffusion(identify_base_model(ModelSource(str(MODEL))))
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        note("encodes (images, prompts)", count_encodes(models, work))
        note("largest difference from vae.encode", largest_errors(models, work))
        note("waiting for data, share of a step", waiting_share(models, accelerator, work))
        few, many, cache = work / "few", work / "many", work / "cache64"
        draw_pictures(few, FEW)
        draw_pictures(many, arguments.images)
        compared = {"step, ratio": step_ratio(models, accelerator, few, many, cache)}
        compared |= compare_runs(few, many, cache, work)
        note(f"{arguments.images} images against {FEW}", compared)
    if arguments.json:
        print(json.dumps(figures, indent=2))


def show(figures, indent=""):
    for name, value in figures.items():
        if isinstance(value, dict):
            print(f"{indent}{name}")
            show(value, indent + "  ")
        else:
            print(f"{indent}{name:<36}{f'{value:.3g}' if isinstance(value, float) else value}", flush=True)


if __name__ == "__main__":
    run_script(main)
