"""Define the settings of an image, and generate images in batches with hypernetworks attached."""

import dataclasses
import functools
import itertools
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from hypernet.formats.load_save import find_weights, load
from hypernet.generation.infotext import write_infotext
from hypernet.generation.prompt_tags import tag_name, write_tag
from hypernet.modeling.attachment import attach, detach
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.conditioning import pipeline_arguments, text_mask
from hypernet.stable_diffusion.loras import FUSED_LORAS_PREFIX, split_lora, write_lora_tag
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.prompt_parser import write_for_webui
from hypernet.stable_diffusion.schedulers import build_scheduler, find_sampler, webui_name
from hypernet.stable_diffusion.text_encoding import encode_prompts, truncation_note
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import file_sha256

SIZE_MULTIPLE = 8  # pixels; image sides are multiples of this


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Everything that shapes one image, apart from the base model.

    The names and the order of the fields are part of the cache key in examples/xy_plot.py.

    Raises:
        UserError: for a value that cannot work.
    """

    prompt: str  # without tags
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance_scale: float = 7.5
    size: tuple[int, int] | None = None  # width, height; default: the model's
    sampler: str | None = None  # default: the model's
    hypernetworks: tuple[tuple[str, float], ...] = ()  # (path or Hub id, strength), in the order they are applied

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"--seed {self.seed}: it must be at least 0 and below 2**63")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"--steps {self.steps}: it must be from 1 to 1000")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"--guidance_scale {self.guidance_scale}: it must be 0 or more")
        if not all(math.isfinite(strength) for _, strength in self.hypernetworks):
            raise UserError("--strength: it must be a finite number")
        paths = [path for path, _ in self.hypernetworks]
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(f"{path}: it is named twice for one image; name it once, with one strength")
        if self.size and any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in self.size):
            shown = f"{self.size[0]}x{self.size[1]}"
            raise UserError(f"--size {shown}: both sides must be positive multiples of {SIZE_MULTIPLE}")
        if self.sampler is not None:
            find_sampler(self.sampler)

    @property
    def batch_key(self) -> tuple:
        """The settings that all images of a batch must share."""
        return self.hypernetworks, self.sampler, self.size, self.steps, self.guidance_scale


def load_for_generation(source: ModelSource) -> StableDiffusion:
    """Load a Stable Diffusion model: in float16 on a GPU, in float32 on a CPU.

    Raises:
        UserError: if it cannot be loaded.
    """
    has_gpu = torch.cuda.is_available()
    dtype = torch.float16 if has_gpu else torch.float32
    return load_stable_diffusion(identify_base_model(source), dtype, "cuda" if has_gpu else "cpu", dtype)


@functools.cache
def weights_sha256(hypernetwork: str) -> str:
    """Return the SHA-256 of a hypernetwork's weights file as hex."""
    return file_sha256(find_weights(hypernetwork))


class ImageGenerator:
    """Generates images with one base model and any hypernetworks.

    Args:
        models: the base model; its pipeline is used as it is.
        loaded: hypernetworks loaded already, by path. Others are loaded when first needed. Each is released after its
            last image.
    """

    def __init__(self, models: StableDiffusion, loaded: dict[str, Hypernetwork] | None = None):
        self.models, self.pipe, self.loaded = models, models.pipeline, dict(loaded or {})
        self.schedulers: dict[str | None, Any] = {None: self.pipe.scheduler}
        self._noted: set[str] = set()  # hypernetworks whose missing LoRAs have been reported

    def generate_all(
        self, settings: Sequence[GenerationSettings], batch_size: int = 1
    ) -> Iterator[tuple[int, Image.Image]]:
        """Generate one image for each of `settings`; images with the same hypernetworks come consecutively.

        Yields:
            The index into `settings` and the image.

        Raises:
            UserError: before the first image, if a sampler does not support the number of steps.
        """
        if note := truncation_note(self.models, [each.prompt for each in settings]):
            print(note, file=sys.stderr)
        for sampler, steps in dict.fromkeys((each.sampler, each.steps) for each in settings):
            check_steps(self._scheduler(sampler, [0]), steps)
        batches = group_into_batches(settings, batch_size)
        for i, indices in enumerate(batches):
            yield from zip(indices, self.generate([settings[index] for index in indices]))
            ahead = {path for j in itertools.chain(*batches[i + 1 :]) for path, _ in settings[j].hypernetworks}
            self.loaded = {path: module for path, module in self.loaded.items() if path in ahead}

    def generate(self, batch: Sequence[GenerationSettings]) -> list[Image.Image]:
        """Generate images whose settings have the same `batch_key` as one batch, each from its own noise.

        An empty prompt is embedded as the model's config says, which is zeros for most SDXL models.
        """
        first, pipe = batch[0], self.pipe
        pipe.scheduler = self._scheduler(first.sampler, [each.seed for each in batch])
        width, height = first.size or (None, None)
        try:
            for path, strength in first.hypernetworks:
                self._attach(path, strength)
            positive = encode_prompts(self.models, [each.prompt for each in batch])
            negative = encode_prompts(self.models, [each.negative_prompt for each in batch])
            arguments, mask = pipeline_arguments(positive, negative, pipe.unet.dtype)
            with text_mask(pipe.unet, mask), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Should have t[ab]")  # torchsde, on rounding
                return pipe(
                    **arguments,
                    generator=[torch.Generator().manual_seed(each.seed) for each in batch],
                    num_inference_steps=first.steps,
                    guidance_scale=first.guidance_scale,
                    width=width,
                    height=height,
                ).images
        finally:
            detach(pipe.unet)

    def infotext(self, settings: GenerationSettings, image: Image.Image) -> str:
        """Return the infotext of a generated image; hypernetworks and LoRAs become tags in its prompt."""
        sampler, schedule_type = webui_name(self._scheduler(settings.sampler, [settings.seed]))
        stack, source = settings.hypernetworks, self.models.base.source
        hashes = {tag_name(path): weights_sha256(path)[:10] for path, _ in stack}
        fields = {
            "Steps": settings.steps,
            "Sampler": sampler,
            "Schedule type": schedule_type,
            "CFG scale": f"{settings.guidance_scale:g}",
            "Seed": settings.seed,
            "Size": f"{image.width}x{image.height}",
            "Model hash": self.models.hash,
            "Model": source.name,
            "VAE": Path(source.pretrained_vae_model_name_or_path or "").name or None,
            "Clip skip": source.clip_skip,
            "Hypernet hashes": ", ".join(f"{name}: {value}" for name, value in hashes.items()) or None,
            "RNG": "CPU",
            "Version": f"diffusers {diffusers.__version__}",
        }
        tags = [write_lora_tag(*split_lora(lora)) for lora in source.lora]
        tags += [write_tag(path, strength) for path, strength in stack]
        as_read = functools.partial(write_for_webui, emphasis=source.prompt_emphasis)
        prompt = " ".join([as_read(settings.prompt.rstrip()), *tags])
        return write_infotext(prompt, as_read(settings.negative_prompt), fields)

    def _attach(self, path: str, strength: float) -> None:
        if path not in self.loaded:
            self.loaded[path] = load(path)
        self._note_missing_loras(path)
        try:
            attach(self.pipe.unet, self.loaded[path], strength)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def _note_missing_loras(self, path: str) -> None:
        """Print a note, once per hypernetwork, if it was trained on fused LoRAs and none are loaded."""
        recorded = self.loaded[path].config.optional_info or ""
        if recorded.startswith(FUSED_LORAS_PREFIX) and not self.models.base.source.lora and path not in self._noted:
            self._noted.add(path)
            names = recorded.removeprefix(FUSED_LORAS_PREFIX).strip()
            print(f"note: {path} was trained with {names} fused; load them with --lora", file=sys.stderr)

    def _scheduler(self, name: str | None, seeds: list[int]) -> Any:
        if name is not None and name not in self.schedulers:
            self.schedulers[name] = build_scheduler(name, self.schedulers[None].config)
        scheduler = self.schedulers[name]
        if hasattr(scheduler, "noise_sampler_seed"):  # DPM++ SDE ignores the pipeline's generators
            scheduler.noise_sampler_seed = seeds
        return scheduler


def group_into_batches(settings: Sequence[GenerationSettings], batch_size: int) -> list[list[int]]:
    """Return batches of indices into `settings`: one `batch_key` per batch, the same hypernetworks consecutively."""
    groups: dict[tuple, dict[tuple, list[int]]] = {}  # paths -> batch_key -> indices
    for index, each in enumerate(settings):
        paths = tuple(path for path, _ in each.hypernetworks)
        groups.setdefault(paths, {}).setdefault(each.batch_key, []).append(index)
    return [
        indices[start : start + batch_size]
        for group in groups.values()
        for indices in group.values()
        for start in range(0, len(indices), batch_size)
    ]


def check_steps(scheduler: Any, steps: int) -> None:
    """Check that a sampler supports a number of steps.

    diffusers miscounts the steps if the first timestep repeats. A single step of even spacing is at timestep 0, which
    has no noise.

    Raises:
        UserError: if not.
    """
    sampler = " ".join(filter(None, webui_name(scheduler)))
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--steps {steps}: {sampler} does not support that many ({reason})") from None
    first = scheduler.timesteps[:2].tolist()
    if first == [0]:
        raise UserError(f"--steps {steps}: {sampler} needs at least 2; for one step, use the schedule type SGM Uniform")
    if len(first) == 2 and first[0] == first[1]:
        problem = f"{sampler} does not support that many with this model; use fewer, or another sampler"
        raise UserError(f"--steps {steps}: {problem}")
