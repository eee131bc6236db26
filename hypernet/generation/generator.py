"""Generate images in batches with hypernetworks attached."""

import functools
import hashlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import diffusers
import torch
from PIL import Image

from hypernet.formats.load_save import find_weights
from hypernet.formats.stack_file import is_stack_file, load_stack, member_files
from hypernet.generation.infotext import SPACING, write_infotext
from hypernet.generation.prompt_tags import tag_name, write_tag
from hypernet.generation.sampling import ImageSampler, check_steps
from hypernet.generation.settings import GenerationSettings
from hypernet.modeling.attachment import attach, detach
from hypernet.modeling.composition import Attachable, Composition
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.loras import FUSED_LORAS_PREFIX, split_lora, write_lora_tag
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.prompt_parser import write_for_webui
from hypernet.stable_diffusion.schedulers import webui_name
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import file_sha256


def load_for_generation(source: ModelSource) -> StableDiffusion:
    """Load a Stable Diffusion model: in float16 on a GPU, in float32 on a CPU.

    The UNet has the same memory format as in training, so that on a CPU, images match previews bit for bit.

    Raises:
        UserError: if it cannot be loaded.
    """
    has_gpu = torch.cuda.is_available()
    dtype = torch.float16 if has_gpu else torch.float32
    models = load_stable_diffusion(identify_base_model(source), dtype, "cuda" if has_gpu else "cpu", dtype)
    models.unet.to(memory_format=torch.channels_last)
    return models


@functools.cache
def weights_sha256(hypernetwork: str) -> str:
    """Return the SHA-256 of a hypernetwork's weights file as hex; for a `.hns`, of the file and its members."""
    own = file_sha256(find_weights(hypernetwork))
    if not is_stack_file(hypernetwork):
        return own
    members = [weights_sha256(str(file)) for file in member_files(hypernetwork)]
    return hashlib.sha256("".join([own, *members]).encode()).hexdigest()


class ImageGenerator:
    """Generates images with one base model and any hypernetworks.

    Args:
        models: the base model; its pipeline is used as it is.
        loaded: hypernetworks loaded already, by path. Others are loaded when first needed. Each is released after its
            last image.
    """

    def __init__(self, models: StableDiffusion, loaded: dict[str, Attachable] | None = None):
        self.models, self.pipe, self.loaded = models, models.pipeline, dict(loaded or {})
        self.sampler = ImageSampler(models, self.pipe)
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
        texts = [text for each in settings for text in (each.prompt, each.negative_prompt)]
        if note := truncation_note(self.models, texts):
            print(note, file=sys.stderr)
        for sampler, steps in dict.fromkeys((each.sampler, each.steps) for each in settings):
            check_steps(self.sampler.scheduler(sampler), steps)
        batches = group_into_batches(settings, batch_size)
        for i, indices in enumerate(batches):
            yield from zip(indices, self.generate([settings[index] for index in indices]))
            ahead = {path for j in itertools.chain(*batches[i + 1 :]) for path, _ in settings[j].hypernetworks}
            self.loaded = {path: module for path, module in self.loaded.items() if path in ahead}

    def generate(self, batch: Sequence[GenerationSettings]) -> list[Image.Image]:
        """Generate images whose settings have the same `batch_key` as one batch, each from its own noise."""
        texts = [text for each in batch for text in (each.prompt, each.negative_prompt)]
        try:
            for path, strength in batch[0].hypernetworks:
                self._attach(path, strength)
            return self.sampler.decode(self.sampler.sample(batch, self.sampler.encode(texts)))
        finally:
            detach(self.pipe.unet)

    def infotext(self, settings: GenerationSettings, image: Image.Image) -> str:
        """Return the infotext of a generated image; hypernetworks and LoRAs become tags in its prompt."""
        sampler, schedule_type = webui_name(scheduler := self.sampler.scheduler(settings.sampler))
        is_leading = scheduler.config.get("timestep_spacing") == "leading"
        stack, source = settings.hypernetworks, self.models.base.source
        hashes = {tag_name(path): weights_sha256(path)[:10] for path, _ in stack}
        fields = {
            "Steps": settings.steps,
            "Sampler": sampler,
            "Schedule type": schedule_type,
            SPACING: "leading" if schedule_type == "Uniform" and is_leading else None,  # not in the WebUI
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
            self.loaded[path] = load_stack(path)
        self._note_missing_loras(path)
        try:
            attach(self.pipe.unet, self.loaded[path], strength)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None

    def _note_missing_loras(self, path: str) -> None:
        """Print a note, once per hypernetwork, if it was trained on fused LoRAs and none are loaded."""
        loaded = self.loaded[path]
        for hypernetwork in loaded.hypernetworks() if isinstance(loaded, Composition) else [loaded]:
            recorded = hypernetwork.config.optional_info or ""
            if recorded.startswith(FUSED_LORAS_PREFIX) and not self.models.base.source.lora and path not in self._noted:
                self._noted.add(path)
                names = recorded.removeprefix(FUSED_LORAS_PREFIX).strip()
                print(f"note: {path} was trained with {names} fused; load them with --lora", file=sys.stderr)


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
