"""Sample batches of images with the UNet as it is, and decode them. Previews and generated images share this code."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hypernet.generation.settings import GenerationSettings
from hypernet.stable_diffusion.conditioning import pipeline_arguments, text_mask
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.schedulers import build_scheduler, webui_name
from hypernet.stable_diffusion.text_encoding import Embeds, encode_prompts
from hypernet.utils.errors import UserError


class ImageSampler:
    """Turns settings into images with one base model, whatever is attached to its UNet.

    Args:
        models: the base model. Its VAE decodes one image at a time, for small cards.
        pipe: a pipeline of its UNet and sampler; it needs no other part.

    Attributes:
        schedulers: the samplers in use by name; None is the model's own.
    """

    def __init__(self, models: StableDiffusion, pipe: DiffusionPipeline):
        self.models, self.pipe = models, pipe
        self.schedulers: dict[str | None, Any] = {None: pipe.scheduler}
        models.vae.enable_slicing()

    def scheduler(self, name: str | None, seeds: Sequence[int] = (0,), option: str = "--sampler") -> Any:
        """Return a sampler of the model, for images of these seeds.

        Args:
            option: what names the sampler, for messages.

        Raises:
            UserError: if there is none of this name, or it does not support the model.
        """
        if name is not None and name not in self.schedulers:
            self.schedulers[name] = build_scheduler(name, self.schedulers[None].config, option)
        scheduler = self.schedulers[name]
        if hasattr(scheduler, "noise_sampler_seed"):  # DPM++ SDE ignores the pipeline's generators
            scheduler.noise_sampler_seed = list(seeds)
        return scheduler

    def encode(self, texts: Iterable[str]) -> dict[str, Embeds]:
        """Return the embedding of each text, which does not depend on the others.

        An empty prompt is embedded as the model's config says, which is zeros for most SDXL models.
        """
        return {text: encode_prompts(self.models, [text])[0] for text in dict.fromkeys(texts)}

    def sample(
        self,
        batch: Sequence[GenerationSettings],
        embeds: Mapping[str, Embeds],
        check: Callable[[], None] | None = None,
    ) -> torch.Tensor:
        """Return the latents of images whose settings have the same `batch_key`, (images, channels, height, width).

        Each is denoised from its own noise.

        Args:
            batch: the settings; their hypernetworks must be attached already.
            embeds: the embeddings of their prompts and negative prompts.
            check: called after every step; may raise.
        """

        def check_after_step(*_: Any) -> dict[str, Any]:
            if check is not None:
                check()
            return {}

        first, pipe = batch[0], self.pipe
        pipe.scheduler = self.scheduler(first.sampler, [each.seed for each in batch])
        width, height = first.size or (None, None)
        positive = [embeds[each.prompt] for each in batch]
        negative = [embeds[each.negative_prompt] for each in batch]
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
                output_type="latent",
                callback_on_step_end=check_after_step,
            ).images

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Return the images of latents, (images, channels, height, width)."""
        vae, is_xl = self.models.vae, self.models.base.is_xl
        precision = torch.float32 if is_xl and vae.config.force_upcast else vae.dtype  # SDXL's overflows in float16
        mean, std = vae.config.latents_mean, vae.config.latents_std
        with _in_precision(vae, precision):
            latents = latents.to(precision)
            if is_xl and mean and std:  # as diffusers' pipeline does
                latents = latents * latents.new_tensor(std).view(1, -1, 1, 1)
            latents = latents / vae.config.scaling_factor
            if is_xl and mean and std:
                latents = latents + latents.new_tensor(mean).view(1, -1, 1, 1)
            pixels = vae.decode(latents).sample
        return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")


@contextlib.contextmanager
def _in_precision(vae: AutoencoderKL, precision: torch.dtype) -> Iterator[None]:
    before = vae.dtype
    if before is precision:  # casting to the same prints a warning
        yield
        return
    try:
        vae.to(precision)
        yield
    finally:
        vae.to(before)


def check_steps(scheduler: Any, steps: int, option: str = "--steps") -> None:
    """Check that a sampler supports a number of steps.

    diffusers miscounts the steps if the first timestep repeats. A single step of even spacing is at timestep 0, which
    has no noise.

    Args:
        option: what gives the number of steps, for messages.

    Raises:
        UserError: if not.
    """
    sampler = " ".join(filter(None, webui_name(scheduler)))
    try:
        scheduler.set_timesteps(steps)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{option} {steps}: {sampler} does not support that many ({reason})") from None
    first = scheduler.timesteps[:2].tolist()
    if first == [0]:
        raise UserError(
            f"{option} {steps}: {sampler} needs at least 2; for one step, use the schedule type SGM Uniform"
        )
    if len(first) == 2 and first[0] == first[1]:
        problem = f"{sampler} does not support that many with this model; use fewer, or another sampler"
        raise UserError(f"{option} {steps}: {problem}")
