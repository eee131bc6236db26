#!/usr/bin/env python
"""Compare whole training runs: ours, and a LoRA trained as in diffusers' example; and measure our loop's overhead.

    python examples/benchmarks/training_run.py        # the quickstart, 1000 steps each; a quarter of an hour

Both train in this process, in turn, with the same model, images, batch size and number of steps. The time counts from
the options to the saved result. The LoRA run is reimplemented from what the example does: images are read, cropped and
encoded at each step, and so are prompts; rank 4 through PEFT, AdamW, a progress bar and a log entry per step. The
overhead of our loop is the time outside the model's own step (forward, backward, clipping, optimizer): data, noise,
loss, logging, progress bar.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import datasets
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tqdm.auto import tqdm

import train_hypernetwork
from examples.benchmarks.clock import Clock
from hypernet.cli.generation_options import parse_count
from hypernet.cli.training_options import parse_config
from hypernet.modeling.attachment import HypernetworkUNet

QUICKSTART = REPO / "examples" / "quickstart"
OPTIONS = ("pretrained_model_name_or_path", "train_data_dir", "resolution", "train_batch_size", "max_train_steps")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--pretrained_model_name_or_path", default=str(QUICKSTART / "model"))
    parser.add_argument("--train_data_dir", default=str(QUICKSTART / "images"))
    parser.add_argument("--resolution", type=parse_count, default=128, help="default: %(default)s")
    parser.add_argument("--train_batch_size", type=parse_count, default=4, help="default: %(default)s")
    parser.add_argument("--max_train_steps", type=parse_count, default=1000, help="of each run; default: %(default)s")
    parser.add_argument("--rounds", type=parse_count, default=3, help="default: %(default)s")
    return parser.parse_args(arguments)


# --- A LoRA, as diffusers' example trains it


def train_lora(args: argparse.Namespace, folder: str) -> None:
    """Train a LoRA and save it to the folder."""
    accelerator = Accelerator()
    pipe = StableDiffusionPipeline.from_pretrained(args.pretrained_model_name_or_path, dtype=torch.float32)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False).to(accelerator.device)
    unet, scheduler = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer, loader = torch.optim.AdamW(weights, lr=1e-4), build_lora_loader(args, pipe.tokenizer)
    lr_scheduler = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, loader, lr_scheduler = accelerator.prepare(unet, optimizer, loader, lr_scheduler)
    bar = tqdm(total=args.max_train_steps)
    while bar.n < args.max_train_steps:
        unet.train()
        for batch in loader:
            with accelerator.accumulate(unet):
                loss = lora_loss(pipe, unet, scheduler, batch)
                mean_loss = accelerator.gather(loss.repeat(len(batch["input_ids"]))).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            bar.update(1)
            accelerator.log({"train_loss": mean_loss}, step=bar.n)
            bar.set_postfix(step_loss=loss.detach().item(), lr=lr_scheduler.get_last_lr()[0])
            if bar.n >= args.max_train_steps:
                break
    bar.close()
    layers = get_peft_model_state_dict(accelerator.unwrap_model(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def lora_loss(
    pipe: StableDiffusionPipeline, unet: torch.nn.Module, scheduler: DDPMScheduler, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """Encode images and prompts, and return the loss of a batch."""
    latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.sample() * pipe.vae.config.scaling_factor
    noise = torch.randn_like(latents)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, latents.shape[:1], device=noise.device)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    text = pipe.text_encoder(batch["input_ids"], return_dict=False)[0]
    prediction = unet(noisy, timesteps, text, return_dict=False)[0]
    return torch.nn.functional.mse_loss(prediction.float(), noise.float())


def build_lora_loader(args: argparse.Namespace, tokenizer: Any) -> torch.utils.data.DataLoader:
    """Return a loader that opens, resizes and crops the images at each access, as the example's does."""
    files = sorted(path for path in Path(args.train_data_dir).rglob("*") if path.suffix in (".png", ".jpg", ".webp"))
    sidecars = [path.with_suffix(".txt") for path in files]
    captions = [sidecar.read_text() if sidecar.exists() else sidecar.stem for sidecar in sidecars]
    data = datasets.Dataset.from_dict({"image": [str(path) for path in files], "text": captions})
    data = data.cast_column("image", datasets.Image())
    processor, side = VaeImageProcessor(), args.resolution

    def transform(examples: dict[str, list]) -> dict[str, list]:
        pixel_values = []
        for image in examples["image"]:
            image = image.convert("RGB")
            scale = side / min(image.size)
            image = image.resize([max(side, round(length * scale)) for length in image.size])
            left, top = (np.random.randint(length - side + 1) for length in image.size)
            image = image.crop((left, top, left + side, top + side))
            pixel_values.append(processor.preprocess(image)[0])
        padding = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        ids = tokenizer(examples["text"], **padding, return_tensors="pt").input_ids
        return {"pixel_values": pixel_values, "input_ids": list(ids)}

    return torch.utils.data.DataLoader(data.with_transform(transform), args.train_batch_size, shuffle=True)


# --- Ours


def train_ours(args: argparse.Namespace, folder: str) -> float:
    """Train a hypernetwork; return the share of the loop's time that is not the model's own step."""
    flags = [f"--{name}={getattr(args, name)}" for name in OPTIONS]
    flags += [f"--output_dir={folder}/run", f"--cache_dir={folder}/cache", "--report_to=none", "--logging_steps=10"]
    clock = Clock()
    with (
        clock.measure(HypernetworkUNet, "forward"),
        clock.measure(Accelerator, "backward", "clip_grad_norm_"),
        clock.measure(AcceleratedOptimizer, "step", "zero_grad"),
    ):
        train_hypernetwork.main(parse_config(flags))
    return 1 - clock.inside / (clock.last - clock.first)


def time_run(train: Callable[[argparse.Namespace, str], Any], args: argparse.Namespace) -> tuple[float, Any]:
    """Return the seconds of a whole run, without its output, and what it returns."""
    AcceleratorState._reset_state(True)
    output = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        started = time.perf_counter()
        result = train(args, folder)
        return time.perf_counter() - started, result


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    ratios, overheads = [], []
    for number in range(args.rounds):
        lora_seconds, _ = time_run(train_lora, args)
        our_seconds, overhead = time_run(train_ours, args)
        ratios.append(lora_seconds / our_seconds)
        overheads.append(overhead)
        speeds = (
            f"LoRA {args.max_train_steps / lora_seconds:6.2f} steps/s, ours {args.max_train_steps / our_seconds:6.2f}"
        )
        print(f"round {number + 1}: {speeds}, {ratios[-1]:.2f} times as many; overhead {overhead:.1%}", flush=True)
    print(f"median: {statistics.median(ratios):.2f} times the LoRA's steps per second, of whole runs")
    print(f"median: {statistics.median(overheads):.1%} of our loop's time is not the model's own step")


if __name__ == "__main__":
    run_script(main)
