"""Draw pictures with a Stable Diffusion and hypernetworks on it: the settings of one, the pipeline, batches of them."""

import dataclasses
import functools
import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from PIL import Image

from hypernet.formats.load_save import find_weights, load
from hypernet.generation.infotext import write_infotext
from hypernet.generation.prompt_tags import tag_name, write_tag
from hypernet.modeling.attachment import attach, detach
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.conditioning import pipeline_arguments, text_mask
from hypernet.stable_diffusion.loras import UNDERNEATH, split_lora, write_lora_tag
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.prompt_parser import escape
from hypernet.stable_diffusion.schedulers import build_scheduler, find_sampler, webui_name
from hypernet.stable_diffusion.text_encoding import encode_prompts, truncation_note
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import file_sha256

MULTIPLE = 8  # of a picture's sides
warnings.filterwarnings("ignore", message="Should have t[ab]")  # torchsde, on the last digit of a float


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """What shapes one picture, but for the model.

    Raises:
        UserError: for what no picture can be drawn with.
    """

    prompt: str  # without tags
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance_scale: float = 7.5
    size: tuple[int, int] | None = None  # width, height; None is the model's own
    sampler: str | None = None  # None is the model's own
    hypernetworks: tuple[tuple[str, float], ...] = ()  # path or Hub id, and strength; each on top of the one before

    def __post_init__(self):
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"--seed {self.seed}: it must be 0 or more, and below 2^63")
        if not 1 <= self.steps <= 1000:
            raise UserError(f"--steps {self.steps}: it must be from 1 to 1000")
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            raise UserError(f"--guidance_scale {self.guidance_scale}: it must be 0 or more")
        if not all(math.isfinite(strength) for _, strength in self.hypernetworks):
            raise UserError("--strength: it must be a number")
        paths = [path for path, _ in self.hypernetworks]
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(f"{path}: it is named twice for one picture; name it once, with the strength of both")
        if self.size and any(side < MULTIPLE or side % MULTIPLE for side in self.size):
            raise UserError(
                f"--size {self.size[0]}x{self.size[1]}: both sides must be multiples of {MULTIPLE}, and more than 0"
            )
        if self.sampler is not None:
            find_sampler(self.sampler)

    @property
    def shared(self) -> tuple:
        """What must be the same in all pictures of a batch."""
        return self.hypernetworks, self.sampler, self.size, self.steps, self.guidance_scale


def load_for_generation(source: ModelSource) -> StableDiffusion:
    """Any Stable Diffusion, SDXL too: float16 on a GPU, float32 on a CPU.

    Raises:
        UserError: if it cannot be loaded.
    """
    has_gpu = torch.cuda.is_available()
    dtype = torch.float16 if has_gpu else torch.float32
    return load_stable_diffusion(identify_base_model(source), dtype, "cuda" if has_gpu else "cpu", dtype)


@functools.cache
def weights_sha256(hypernetwork: str) -> str:
    """The sha256 of its weights file."""
    return file_sha256(find_weights(hypernetwork))


class ImageGenerator:
    """One model that draws whatever is asked for; each hypernetwork is loaded once, and let go after its last use.

    `loaded` are hypernetworks that are open already, by path.
    """

    def __init__(self, models: StableDiffusion, loaded: dict | None = None):
        self.models, self.pipe, self.loaded = models, models.pipeline, dict(loaded or {})
        self.schedulers, self.told = {None: self.pipe.scheduler}, set()

    def generate_all(self, pictures: list[GenerationSettings], batch_size: int = 1) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture) of all of them, those with the same hypernetworks one after the other.

        Raises:
            UserError: before the first one, if a sampler cannot take so many steps.
        """
        if note := truncation_note(self.models, [picture.prompt for picture in pictures]):
            print(note, file=sys.stderr)
        for sampler, steps in dict.fromkeys((picture.sampler, picture.steps) for picture in pictures):
            check_steps(self._scheduler(sampler, [0]), steps)
        groups = {}
        for index, picture in enumerate(pictures):
            files = tuple(path for path, _ in picture.hypernetworks)
            groups.setdefault(files, {}).setdefault(picture.shared, []).append(index)
        batches = [
            indices[start : start + batch_size]
            for group in groups.values()
            for indices in group.values()
            for start in range(0, len(indices), batch_size)
        ]
        for i, indices in enumerate(batches):
            yield from zip(indices, self.generate([pictures[index] for index in indices]))
            ahead = {path for j in itertools.chain(*batches[i + 1 :]) for path, _ in pictures[j].hypernetworks}
            self.loaded = {path: module for path, module in self.loaded.items() if path in ahead}

    def generate(self, batch: list[GenerationSettings]) -> list[Image.Image]:
        """Pictures that share what `PictureSettings.shared` names, in one forward pass; each has its own noise.

        An empty prompt, or negative prompt, is what guidance compares with: for most SDXL models that is no text at all.
        """
        first, pipe = batch[0], self.pipe
        pipe.scheduler = self._scheduler(first.sampler, [picture.seed for picture in batch])
        width, height = first.size or (None, None)
        try:
            for path, strength in first.hypernetworks:
                if path not in self.loaded:
                    self.loaded[path] = load(path)
                self._tell_loras(path)
                try:
                    attach(pipe.unet, self.loaded[path], strength)
                except ValueError as error:
                    raise UserError(f"{path}: {error}") from None
            positive = encode_prompts(self.models, [picture.prompt for picture in batch])
            negative = encode_prompts(self.models, [picture.negative_prompt for picture in batch])
            given, mask = pipeline_arguments(positive, negative, pipe.unet.dtype)
            with text_mask(pipe.unet, mask):
                return pipe(
                    **given,
                    generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
                    num_inference_steps=first.steps,
                    guidance_scale=first.guidance_scale,
                    width=width,
                    height=height,
                ).images
        finally:
            detach(pipe.unet)

    def _tell_loras(self, path):
        """Say once if a hypernetwork was trained over LoRAs, and here it is drawn without any."""
        note = self.loaded[path].config.optional_info or ""
        if note.startswith(UNDERNEATH) and not self.models.base.source.lora and path not in self.told:
            self.told.add(path)
            names = note.removeprefix(UNDERNEATH).strip()
            print(f"note: {path} was trained over {names}; --lora puts them under it", file=sys.stderr)

    def _scheduler(self, name, seeds):
        if name not in self.schedulers:
            self.schedulers[name] = build_scheduler(name, self.schedulers[None].config)
        scheduler = self.schedulers[name]
        if hasattr(scheduler, "noise_sampler_seed"):  # DPM++ SDE draws its noise apart, from seeds of its own
            scheduler.noise_sampler_seed = seeds
        return scheduler

    def infotext(self, picture: GenerationSettings, image: Image.Image, **more) -> str:
        """The WebUI's text about a picture that was drawn here; all hypernetworks stand as tags behind the prompt."""
        sampler, schedule_type = webui_name(self._scheduler(picture.sampler, [picture.seed]))
        stack, source = picture.hypernetworks, self.models.base.source
        # brackets that are plain here would weigh in the WebUI
        as_read = str if source.prompt_emphasis else escape
        hashes = {tag_name(path): weights_sha256(path)[:10] for path, _ in stack}
        fields = {
            "Steps": picture.steps,
            "Sampler": sampler,
            "Schedule type": schedule_type,
            "CFG scale": f"{picture.guidance_scale:g}",
            "Seed": picture.seed,
            "Size": f"{image.width}x{image.height}",
            "Model hash": self.models.hash,
            "Model": source.name,
            "VAE": Path(source.pretrained_vae_model_name_or_path or "").name or None,
            "Clip skip": source.clip_skip,
            "Hypernet hashes": ", ".join(f"{name}: {value}" for name, value in hashes.items()) or None,
            "RNG": "CPU",
            **more,
            "Version": f"diffusers {diffusers.__version__}",
        }
        tags = [write_lora_tag(*split_lora(lora)) for lora in source.lora]
        tags += [write_tag(path, strength) for path, strength in stack]
        prompt = " ".join([as_read(picture.prompt.rstrip()), *tags])
        return write_infotext(prompt, as_read(picture.negative_prompt), fields)


def check_steps(scheduler, steps: int):
    """Raises: UserError if the sampler cannot take so many; where it repeats its first timestep, diffusers loses count."""
    sampler = " ".join(filter(None, webui_name(scheduler)))
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        raise UserError(f"steps {steps}: {sampler} cannot take so many ({_one_line(error)})") from None
    first = scheduler.timesteps[:2].tolist()
    if len(first) == 2 and first[0] == first[1]:
        raise UserError(f"steps {steps}: {sampler} cannot take so many with this model; take fewer, or another sampler")


def _one_line(error) -> str:
    return " ".join(str(error).split())
