#!/usr/bin/env python
"""Whole trainings side by side: ours, and a LoRA's the way diffusers' example makes it; and what our loop adds to the model.

    python examples/benchmarks/training_run.py              # the quickstart's model and pictures, 1000 steps each; a quarter of an hour

Both train in this process on the same model, pictures, batch and number of steps, in turn; what counts is all from the
options to the saved result. The LoRA's is written from the facts: pictures are read, cut and encoded at each step, prompts
too, rank 4 through PEFT, AdamW, a progress bar and a log entry a step. Of our runs, the time that the loop spends outside the
model's own step (forward, backward, clipping, optimizer) is told: data, noise, loss, logging, progress bar.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import quiet_libraries

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
from hypernet.cli.script import ScriptParser, run_script
from hypernet.cli.training_options import parse_config
from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.utils.errors import UserError

MODELS_OWN = [(HypernetworkUNet, "forward"), (Accelerator, "backward"), (Accelerator, "clip_grad_norm_")]
MODELS_OWN += [(AcceleratedOptimizer, "step"), (AcceleratedOptimizer, "zero_grad")]


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("--pretrained_model_name_or_path", default=str(REPO / "examples" / "quickstart" / "model"))
    parser.add_argument("--train_data_dir", default=str(REPO / "examples" / "quickstart" / "images"))
    parser.add_argument("--resolution", type=int, default=128, help="default: %(default)s")
    parser.add_argument("--train_batch_size", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--max_train_steps", type=int, default=1000, help="of each run; default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    args = parser.parse_args(arguments)
    if min(args.resolution, args.train_batch_size, args.max_train_steps, args.rounds) < 1:
        raise UserError("--resolution, --train_batch_size, --max_train_steps and --rounds must be 1 or more")
    return args


# --- A LoRA, as diffusers' example trains it


def train_lora(args, folder):
    accelerator = Accelerator()
    pipe = StableDiffusionPipeline.from_pretrained(args.pretrained_model_name_or_path, dtype=torch.float32)
    for module in (pipe.unet, pipe.vae, pipe.text_encoder):
        module.requires_grad_(False).to(accelerator.device)
    unet, scheduler = pipe.unet, DDPMScheduler.from_config(pipe.scheduler.config)
    targets = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, init_lora_weights="gaussian", target_modules=targets))
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer, loader = torch.optim.AdamW(weights, lr=1e-4), open_pictures(args, pipe.tokenizer)
    rates = get_scheduler("constant", optimizer=optimizer)
    unet, optimizer, loader, rates = accelerator.prepare(unet, optimizer, loader, rates)
    bar = tqdm(total=args.max_train_steps)
    while bar.n < args.max_train_steps:
        unet.train()
        for batch in loader:
            with accelerator.accumulate(unet):
                latents = pipe.vae.encode(batch["pixel_values"]).latent_dist.sample() * pipe.vae.config.scaling_factor
                noise = torch.randn_like(latents)
                timesteps = torch.randint(
                    0, scheduler.config.num_train_timesteps, latents.shape[:1], device=noise.device
                )
                noisy = scheduler.add_noise(latents, noise, timesteps)
                text = pipe.text_encoder(batch["input_ids"], return_dict=False)[0]
                prediction = unet(noisy, timesteps, text, return_dict=False)[0]
                loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
                shown = accelerator.gather(loss.repeat(len(latents))).mean().item()
                accelerator.backward(loss)
                accelerator.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                rates.step()
                optimizer.zero_grad()
            bar.update(1)
            accelerator.log({"train_loss": shown}, step=bar.n)
            bar.set_postfix(step_loss=loss.detach().item(), lr=rates.get_last_lr()[0])
            if bar.n >= args.max_train_steps:
                break
    bar.close()
    layers = get_peft_model_state_dict(accelerator.unwrap_model(unet))
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)


def open_pictures(args, tokenizer):
    """A loader that opens, cuts and flips the pictures at each access, as the example's does."""
    files = sorted(path for path in Path(args.train_data_dir).rglob("*") if path.suffix in (".png", ".jpg", ".webp"))
    captions = [
        path.with_suffix(".txt").read_text() if path.with_suffix(".txt").exists() else path.stem for path in files
    ]
    data = datasets.Dataset.from_dict({"image": [str(path) for path in files], "text": captions})
    data = data.cast_column("image", datasets.Image())
    processor, side = VaeImageProcessor(), args.resolution

    def transform(examples):
        pictures = []
        for image in examples["image"]:
            image = image.convert("RGB")
            scale = side / min(image.size)
            image = image.resize([max(side, round(length * scale)) for length in image.size])
            left, top = (np.random.randint(length - side + 1) for length in image.size)
            image = image.crop((left, top, left + side, top + side))
            pictures.append(processor.preprocess(image)[0])
        padding = {"max_length": tokenizer.model_max_length, "padding": "max_length", "truncation": True}
        ids = tokenizer(examples["text"], **padding, return_tensors="pt").input_ids
        return {"pixel_values": pictures, "input_ids": list(ids)}

    return torch.utils.data.DataLoader(data.with_transform(transform), args.train_batch_size, shuffle=True)


# --- Ours


class Clock:
    """The seconds within some functions, and from the first call of one to the last one's end."""

    def __init__(self):
        self.inside, self.first, self.last = 0.0, None, None

    @contextlib.contextmanager
    def watch(self, owner, name):
        function = getattr(owner, name)

        def timed(*args, **kwargs):
            started = time.perf_counter()
            self.first = self.first or started
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # so that the model's time counts here, and not where it is waited for
                self.last = time.perf_counter()
                self.inside += self.last - started

        with mock.patch.object(owner, name, timed):
            yield


def train_ours(args, folder) -> float:
    """The share of the loop's time that is not the model's own step."""
    names = ("pretrained_model_name_or_path", "train_data_dir", "resolution", "train_batch_size", "max_train_steps")
    options = {name: getattr(args, name) for name in names}
    options |= {"output_dir": f"{folder}/run", "cache_dir": f"{folder}/cache", "report_to": "none", "logging_steps": 10}
    clock = Clock()
    with contextlib.ExitStack() as stack:
        for owner, name in MODELS_OWN:
            stack.enter_context(clock.watch(owner, name))
        train_hypernetwork.main(parse_config([f"--{name}={value}" for name, value in options.items()]))
    return 1 - clock.inside / (clock.last - clock.first)


def timed(train, args) -> tuple[float, float | None]:
    """(seconds, what the training returns) of a whole run, without its words."""
    AcceleratorState._reset_state(True)
    said = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        started = time.perf_counter()
        result = train(args, folder)
        return time.perf_counter() - started, result


def main(arguments=None):
    args = parse_arguments(arguments)
    ratios, shares = [], []
    for number in range(args.rounds):
        theirs, _ = timed(train_lora, args)
        mine, share = timed(train_ours, args)
        ratios.append(theirs / mine)
        shares.append(share)
        speeds = f"LoRA {args.max_train_steps / theirs:6.2f} steps/s, ours {args.max_train_steps / mine:6.2f}"
        print(f"round {number + 1}: {speeds}, {ratios[-1]:.2f} times as many; beside the model {share:.1%}", flush=True)
    print(f"median: {statistics.median(ratios):.2f} times the LoRA's steps per second, of whole runs")
    print(f"median: {statistics.median(shares):.1%} of our loop's time is not the model's own step")


if __name__ == "__main__":
    run_script(main)
