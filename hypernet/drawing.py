"""Draw pictures with a Stable Diffusion and hypernetworks on it: the settings of one, the pipeline, batches of them."""

import dataclasses
import functools
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import diffusers
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError

import hypernet
from hypernet.errors import UserError
from hypernet.files import find_weights
from hypernet.hashes import file_sha256
from hypernet.infotext import write_infotext
from hypernet.models import model_name, weights_hash
from hypernet.prompt_tags import tag_name, write_tag
from hypernet.samplers import build_scheduler, find_sampler, webui_name

MULTIPLE = 8  # of a picture's sides
warnings.filterwarnings("ignore", message="Should have t[ab]")  # torchsde, on the last digit of a float


@dataclasses.dataclass(frozen=True)
class PictureSettings:
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
        with_negative = bool(self.negative_prompt)  # SDXL treats none at all otherwise than an empty one
        return self.hypernetworks, self.sampler, self.size, self.steps, self.guidance_scale, with_negative


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a diffusers folder or a Hub id.

    Raises:
        UserError: if there can be none there.
    """

    path: str
    revision: str | None = None
    variant: str | None = None

    def __post_init__(self):
        folder, problem = Path(self.path), None
        if folder.is_file():
            problem = "it is a file; name a diffusers folder or a Hub id"
        elif folder.exists() and not (folder / "model_index.json").is_file():
            problem = "there is no model_index.json in it, so it is no diffusers folder"
        elif not folder.exists() and (len(folder.parts) != 2 or self.path[0] in "./~"):
            problem = "there is no such folder"
        if problem:
            raise UserError(f"--model {self.path}: {problem}")

    def identity(self) -> str:
        """Changes with the model: a commit of the Hub, or a folder's configs and its weight files' sizes and times."""
        folder = Path(self.path)
        if not folder.exists():
            try:
                index = hf_hub_download(self.path, "model_index.json", revision=self.revision)
            except OSError as error:
                raise UserError(f"--model {self.path}: it cannot be found ({_one_line(error)})") from None
            return f"{self.path} {Path(index).parent.name} {self.variant}"
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*.*")):
            if file.is_file():
                status = file.stat()
                content = file.read_bytes() if file.suffix == ".json" else f"{status.st_size} {status.st_mtime_ns}"
                digest.update(repr((file.relative_to(folder).as_posix(), content)).encode())
        return f"{model_name(self.path)} {digest.hexdigest()} {self.variant}"


def load_pipeline(source: ModelSource) -> DiffusionPipeline:
    """Any Stable Diffusion, SDXL too: float16 on a GPU, float32 on a CPU, without the safety checker.

    Raises:
        UserError: if it cannot be loaded.
    """
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    where = {"revision": source.revision, "variant": source.variant}
    try:
        parts = DiffusionPipeline.load_config(source.path, revision=source.revision)
        unchecked = {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in parts else {}
        pipe = DiffusionPipeline.from_pretrained(source.path, dtype=dtype, **where, **unchecked)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"--model {source.path}: it cannot be loaded ({_one_line(error)})") from None
    if not hasattr(pipe, "unet"):
        raise UserError(f"--model {source.path}: it is a {type(pipe).__name__} and has no UNet for hypernetworks")
    return pipe.to("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def weights_sha256(hypernetwork: str) -> str:
    """The sha256 of its weights file."""
    return file_sha256(find_weights(hypernetwork))


class Painter:
    """One pipeline that draws whatever is asked for; each hypernetwork is loaded once, and let go after its last use.

    `loaded` are hypernetworks that are open already, by path.
    """

    def __init__(self, pipe: DiffusionPipeline, source: ModelSource, loaded: dict | None = None):
        self.pipe, self.source, self.loaded = pipe, source, dict(loaded or {})
        self.schedulers = {None: pipe.scheduler}

    def draw_all(self, pictures: list[PictureSettings], batch_size: int = 1) -> Iterator[tuple[int, Image.Image]]:
        """(index, picture) of all of them, those with the same hypernetworks one after the other.

        Raises:
            UserError: before the first one, if a sampler cannot take so many steps.
        """
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
            yield from zip(indices, self.draw([pictures[index] for index in indices]))
            ahead = {path for j in itertools.chain(*batches[i + 1 :]) for path, _ in pictures[j].hypernetworks}
            self.loaded = {path: module for path, module in self.loaded.items() if path in ahead}

    def draw(self, batch: list[PictureSettings]) -> list[Image.Image]:
        """Pictures that share what `PictureSettings.shared` names, in one forward pass; each has its own noise."""
        first, pipe = batch[0], self.pipe
        pipe.scheduler = self._scheduler(first.sampler, [picture.seed for picture in batch])
        width, height = first.size or (None, None)
        try:
            for path, strength in first.hypernetworks:
                if path not in self.loaded:
                    self.loaded[path] = hypernet.load(path)
                try:
                    hypernet.attach(pipe.unet, self.loaded[path], strength)
                except ValueError as error:
                    raise UserError(f"{path}: {error}") from None
            return pipe(
                [picture.prompt for picture in batch],
                negative_prompt=[picture.negative_prompt for picture in batch] if first.negative_prompt else None,
                generator=[torch.Generator().manual_seed(picture.seed) for picture in batch],
                num_inference_steps=first.steps,
                guidance_scale=first.guidance_scale,
                width=width,
                height=height,
            ).images
        finally:
            hypernet.detach(pipe.unet)

    def _scheduler(self, name, seeds):
        if name not in self.schedulers:
            self.schedulers[name] = build_scheduler(name, self.schedulers[None].config)
        scheduler = self.schedulers[name]
        if hasattr(scheduler, "noise_sampler_seed"):  # DPM++ SDE draws its noise apart, from seeds of its own
            scheduler.noise_sampler_seed = seeds
        return scheduler

    @functools.cached_property
    def model_hash(self) -> str:
        """As the trainer notes it in a hypernetwork; the WebUI's is one of a file that is not here."""
        return weights_hash(self.pipe.unet, torch.float16)

    def infotext(self, picture: PictureSettings, image: Image.Image, **more) -> str:
        """The WebUI's text about a picture that was drawn here; all hypernetworks stand as tags behind the prompt."""
        sampler, schedule_type = webui_name(self._scheduler(picture.sampler, [picture.seed]))
        stack = picture.hypernetworks
        hashes = {tag_name(path): weights_sha256(path)[:10] for path, _ in stack}
        fields = {
            "Steps": picture.steps,
            "Sampler": sampler,
            "Schedule type": schedule_type,
            "CFG scale": f"{picture.guidance_scale:g}",
            "Seed": picture.seed,
            "Size": f"{image.width}x{image.height}",
            "Model hash": self.model_hash,
            "Model": model_name(self.source.path),
            "Hypernet hashes": ", ".join(f"{name}: {value}" for name, value in hashes.items()) or None,
            "RNG": "CPU",
            **more,
            "Version": f"diffusers {diffusers.__version__}",
        }
        prompt = " ".join([picture.prompt.rstrip(), *(write_tag(path, strength) for path, strength in stack)])
        return write_infotext(prompt, picture.negative_prompt, fields)


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
