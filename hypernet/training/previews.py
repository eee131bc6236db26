"""Generate previews with fixed seeds during training, in labeled grids."""

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.conditioning import pipeline_arguments, text_mask
from hypernet.stable_diffusion.model import StableDiffusion, latents_pipeline
from hypernet.stable_diffusion.text_encoding import Embeds, encode_prompts, truncation_note
from hypernet.utils.image_grid import preview_grid

TILE = 512  # pixels per side; SD 1.x was trained at this size


class Previewer:
    """Generates previews of the validation prompts with the current weights, always from the same noise.

    The constructor encodes the prompts. The VAE is on the device only while it decodes, and torch's global random state
    is untouched. Several processes split the prompts among themselves.

    Attributes:
        base_previews: the previews without the hypernetwork, a row per prompt; None until they are generated.
    """

    def __init__(self, models: StableDiffusion, config: TrainingConfig, accelerator: Accelerator):
        self.config, self.accelerator, self.vae = config, accelerator, models.vae
        self.prompts = list(config.validation_prompt or [])
        self.vae.enable_slicing()  # one image at a time, for small cards
        if config.enable_tiling:
            enable_tiling(self.vae)
        self.embeds = encode_prompts(models, [*self.prompts, ""])
        if note := truncation_note(models, self.prompts):
            accelerator.print(note)
        self.base_previews: list[list[Image.Image]] | None = None
        self.pipeline = latents_pipeline(models)  # only the UNet: the other parts may be on another device
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def generate(self) -> list[list[Image.Image]] | None:
        """Return a row of previews per prompt on the main process, None on the others."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = range(process, len(self.prompts), processes)
        latents = {number: self._sample(self.embeds[number]) for number in share}
        self.vae.to(self.accelerator.device)
        decoded = [(number, self._decode(latents[number])) for number in share]
        self.vae.to("cpu")
        rows = dict(gather_object(decoded))
        return [rows[number] for number in sorted(rows)] if self.accelerator.is_main_process else None

    def compare(self, label: str) -> tuple[list[list[Image.Image]] | None, Image.Image | None]:
        """Return the current previews, and a grid that shows those without the hypernetwork beside them.

        Both are None on all but the main process.

        Args:
            label: the column label of the current previews.
        """
        previews = self.generate()
        if previews is None:
            return None, None
        assert self.base_previews is not None
        rows = [[*base, *current] for base, current in zip(self.base_previews, previews)]
        count = self.config.num_validation_images
        return previews, preview_grid(rows, self.prompts, ["without"] * count + [label] * count)

    def _sample(self, embeds: Embeds) -> torch.Tensor:
        """Return the latents of a prompt's previews, (images, channels, height, width)."""
        config, unet = self.config, self.pipeline.unet
        count, (width, height) = config.num_validation_images, config.size
        arguments, mask = pipeline_arguments([embeds] * count, [self.embeds[-1]] * count, unet.dtype)
        with text_mask(unet, mask):
            return self.pipeline(
                **arguments,
                num_inference_steps=config.validation_inference_steps,
                guidance_scale=config.validation_guidance_scale,
                height=height,
                width=width,
                generator=[torch.Generator().manual_seed(config.seed + i) for i in range(count)],
                output_type="latent",
            ).images

    def _decode(self, latents: torch.Tensor) -> list[Image.Image]:
        pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")


def enable_tiling(vae: AutoencoderKL) -> None:
    """Decode images larger than `TILE` in tiles that overlap by a quarter, one after another."""
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
