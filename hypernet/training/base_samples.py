"""Images that the base model generates without a hypernetwork, cached for resumed and later runs."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, Pairs, Row, RowCache, cache_folder
from hypernet.generation.preview_prompts import PreviewPrompt, preview_prompts
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.model_hash import config_items, parts_hash
from hypernet.stable_diffusion.text_encoding import text_hash
from hypernet.training.preview_setup import SEEDS
from hypernet.training.previews import Previewer
from hypernet.training.run import Run
from hypernet.training.run_identity import MODEL_PARTS


def build_previewer(
    run: Run, models: StableDiffusion, texts: Sequence[str], seed: int = 0, config: TrainingConfig | None = None
) -> Previewer:
    """Return a previewer that generates one image per text, each from its own noise, with the run's settings.

    It encodes the texts, so the text encoders must still be loaded.

    Args:
        seed: added to the seed of the options.
        config: the options; default: the run's.
    """
    config = dataclasses.replace(
        config or run.config, validation_prompt=[""], validation_prompts_file=None, num_validation_images=1
    )
    first = preview_prompts(config)[0].with_seed(config.seed)
    seeds = [(first.seed + seed + i) % SEEDS for i in range(len(texts))]
    prompts = [dataclasses.replace(first, prompt=text, seed=each) for text, each in zip(texts, seeds)]
    return Previewer(models, config, run.accelerator, run.failures, prompts)


def sample_base(run: Run, models: StableDiffusion, previewer: Previewer, description: str) -> list[torch.Tensor]:
    """Return the latents of one image per prompt, each (channels, height, width) in float32.

    All processes call this, before a hypernetwork is attached. Only images that are not cached yet are generated.

    Args:
        previewer: as `build_previewer` returns it.
        description: the label of the progress bar.

    Raises:
        UserError: if the cache cannot be written, or another process has failed.
        ValueError: if the latents of an image are not finite.
    """
    cache = RowCache(samples_folder(run, models), {"latents": FLOATS}, run.processes)
    keys = [parts_hash(json.dumps(prompt.settings())) for prompt in previewer.prompts]
    shapes = [_latent_shape(models, prompt) for prompt in previewer.prompts]

    def sample(items: Pairs) -> Iterator[Row]:
        for key, prompt in items:
            latents = previewer.sample_prompt(prompt)[0].float().cpu()
            if not latents.isfinite().all():
                raise ValueError("the base model outputs NaN")
            yield {"key": key, "latents": latents.numpy().ravel()}

    cache.fill(dict(zip(keys, previewer.prompts)), sample, description, "images")
    found = (cache.read(int(position), "latents") for position in cache.positions(keys))
    return [torch.tensor(values).view(shape) for values, shape in zip(found, shapes)]


def samples_folder(run: Run, models: StableDiffusion) -> Path:
    """Return the cache folder. Its name depends on everything besides the prompt's settings that affects an image."""
    parts = {kind: run.folder.identity.contents.get(kind) for kind in MODEL_PARTS}
    scheduler = models.pipeline.scheduler
    sampler = type(scheduler).__name__, config_items(scheduler.config)
    options = str(run.dtype), run.config.quantize
    digest = parts_hash(models.hash, parts, json.dumps(sampler, default=str), text_hash(models), options)
    return cache_folder(run.config.cache_dir) / f"samples-{CACHE_VERSION}-{digest}"


def _latent_shape(models: StableDiffusion, prompt: PreviewPrompt) -> tuple[int, int, int]:
    width, height = (side // models.base.image_multiple for side in prompt.size)
    return models.unet.config.in_channels, height, width
