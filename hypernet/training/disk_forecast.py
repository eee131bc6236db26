"""Forecast the disk space of a run from the sizes of what it writes, and refuse a run that can save nothing."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import cache_folder
from hypernet.data.dataset import build_prompt_sampler
from hypernet.data.image_index import ImageRecord
from hypernet.data.latents import latent_bytes
from hypernet.generation.preview_prompts import preview_prompts
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.training.run import Run
from hypernet.utils.atomic_files import free_space
from hypernet.utils.errors import UserError, counted
from hypernet.utils.numbers import size_text

PREVIEW_BYTES = 2  # per pixel of a photo-like PNG
TOKENS = 77  # of a prompt that fits into one chunk
USUAL_LIMIT = 3  # checkpoints to suggest


@dataclasses.dataclass(frozen=True)
class DiskForecast:
    """Sizes in bytes of what a run writes, and how many checkpoints there are at the same time.

    Attributes:
        weights: of the hypernetwork.
        checkpoint: one checkpoint, without the best state in it.
        best: the best state; 0 without validation images.
        count: checkpoints at the end.
        cache: images and prompts, if none are cached yet.
    """

    weights: int
    checkpoint: int
    best: int
    count: int
    previews: int
    cache: int

    @property
    def export(self) -> int:
        """The hypernetwork in both formats."""
        return 2 * self.weights

    @property
    def least(self) -> int:
        """What a run must be able to write to end with a result: the hypernetwork, and one checkpoint."""
        return self.export + self.checkpoint + self.best

    @property
    def at_end(self) -> int:
        """The least that the output folder holds at the end: all checkpoints may have the same best state."""
        return self.export + self.count * self.checkpoint + self.best

    @property
    def most(self) -> int:
        """About the most that it ever holds: each checkpoint has its own best state, and one more is being written."""
        return self.export + (self.count + 1) * (self.checkpoint + self.best) + self.previews


def forecast_disk(
    config: TrainingConfig,
    base: BaseModel,
    hypernetwork: Hypernetwork,
    state_ratio: float,
    records: Sequence[ImageRecord],
    prompts: int,
) -> DiskForecast:
    """Compute the sizes of what a run writes.

    Args:
        hypernetwork: one with the structure to train; may be on the meta device.
        state_ratio: bytes of the optimizer's state per byte of the weights.
        records: of the images.
        prompts: the number of prompts to cache.
    """
    weights = sum(weight.numel() * 4 for weight in hypernetwork.parameters())
    average = weights if config.ema_decay else 0
    trained = weights + average + int(state_ratio * weights)
    last_step = learning_rate_schedule(config).last_step
    saved = -(-last_step // config.checkpointing_steps)
    pixels_each = 2 * config.num_validation_images * sum(math.prod(each.size) for each in preview_prompts(config))
    pixels = (last_step // config.validation_steps + 1) * pixels_each
    crops = (config.crop_variants or 4 if config.crop == "random" else 1) * (2 if config.flip_probability else 1)
    latents = sum(latent_bytes(base, record) for record in records) * crops
    return DiskForecast(
        weights=weights,
        checkpoint=trained,
        best=trained + weights if config.has_validation else 0,
        count=min(saved, config.checkpoints_total_limit or saved),
        previews=pixels * PREVIEW_BYTES,
        cache=latents + prompts * TOKENS * base.unet_config.get("cross_attention_dim", 1280) * 4,
    )


def structure_of(config: TrainingConfig, widths: Sequence[int]) -> Hypernetwork:
    """Return the hypernetwork that the options describe on the meta device, where its weights take no memory."""
    with torch.device("meta"):
        return Hypernetwork(tuple(widths), **config.structure())


def check_disk(run: Run, records: list[ImageRecord]) -> str:
    """Return a line on the disk space that a run needs.

    Args:
        records: of the images to train on.

    Raises:
        UserError: if not even one checkpoint fits on the disk.
    """
    config, folder = run.config, run.folder
    hypernetwork = run.initial.hypernetwork if run.initial else structure_of(config, run.widths)
    prompts = build_prompt_sampler(run.source, records, config).all_prompts() or []
    forecast = forecast_disk(config, run.base, hypernetwork, run.state_ratio, records, len(prompts))
    return describe_disk(config, forecast, disk_use([folder.checkpoints, folder.best]))


def describe_disk(config: TrainingConfig, forecast: DiskForecast, existing: int) -> str:
    """Return a line on the disk space that a run needs.

    Args:
        existing: bytes of checkpoints already there, which are part of this run or will be deleted first.

    Raises:
        UserError: if not even one checkpoint fits on the disk.
    """
    free = free_space(Path(config.output_dir))
    room, given = free + existing, f"--output_dir {config.output_dir}"
    count, checkpoint = forecast.count, forecast.checkpoint
    what = f"{counted(count, 'checkpoint')} of {size_text(checkpoint)}"
    fitting = int((room - forecast.export - forecast.best) // checkpoint) - 1  # less the one being written
    limit = min(fitting, USUAL_LIMIT)
    hint = f"add --checkpoints_total_limit {limit}" if 1 <= limit < count else "free some space, or use another disk"
    if forecast.least > room:
        needed = f"the run needs at least {size_text(forecast.least)} there, for one checkpoint and the hypernetwork"
        raise UserError(f"{given}: {needed}, but only {size_text(free)} is free; {hint}")
    parts = [
        f"{what}{', plus best states' if forecast.best else ''}",
        f"hypernetwork in both formats {size_text(forecast.export)}",
    ]
    parts += [f"previews {size_text(forecast.previews)}"] if forecast.previews else []
    line = f"disk space: about {size_text(forecast.most)} in {config.output_dir} ({', '.join(parts)}),"
    line += f" where {size_text(free)} is free, and up to {size_text(forecast.cache)} for encoded images and prompts"
    line += f" in {cache_folder(config.cache_dir)}"
    if forecast.most <= room:
        return line
    problem = "the disk may fill up" if forecast.at_end <= room else "the disk will be full before the run ends"
    return f"{line}\nnote: {given}: {problem}; {hint}"


def disk_use(folders: Iterable[Path]) -> int:
    """Return how many bytes the files below these folders take, hard links counted once."""
    files: dict[tuple[int, int], int] = {}
    for folder in folders:
        for root, _, names in os.walk(folder):
            for name in names:
                try:
                    status = os.stat(os.path.join(root, name))
                except OSError:
                    continue
                files[status.st_dev, status.st_ino or hash((root, name))] = status.st_size
    return sum(files.values())
