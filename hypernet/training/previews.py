"""Draw samples with fixed seeds while training, and lay them out in labelled grids."""


import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hypernet.stable_diffusion.conditioning import pipeline_arguments, text_mask
from hypernet.stable_diffusion.model import StableDiffusion, latents_pipeline
from hypernet.stable_diffusion.text_encoding import encode_prompts, truncation_note
from hypernet.utils.image_grid import preview_grid

TILE = 512  # pixels a side, as SD 1.x's VAE was trained on


class Previewer:
    """Samples of a few prompts from the model as it is at the moment, always from the same noise.

    Prompts are encoded when it is built. Its pipeline shares the models, and the VAE is on the device only while pictures
    are decoded; torch's generators are left untouched. Several processes share the prompts out.
    """

    def __init__(self, models: StableDiffusion, config, accelerator: Accelerator):
        self.config, self.accelerator, self.vae = config, accelerator, models.vae
        self.prompts = list(config.validation_prompt)
        self.vae.enable_slicing()  # one image at a time, for small cards
        if config.enable_tiling:
            enable_tiling(self.vae)
        self.embeds = encode_prompts(models, [*config.validation_prompt, ""])
        if note := truncation_note(models, config.validation_prompt):
            accelerator.print(note)
        self.without = None  # the pictures without a hypernetwork
        self.pipeline = latents_pipeline(models)  # of the UNet alone: the others may be on another device
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def generate(self) -> list[list[Image.Image]] | None:
        """One row of pictures per prompt, on the main process; None on the others."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = range(process, len(self.config.validation_prompt), processes)
        latents = {number: self._sample(self.embeds[number]) for number in mine}
        self.vae.to(self.accelerator.device)
        pictures = [(number, self._decode(latents[number])) for number in mine]
        self.vae.to("cpu")
        drawn = dict(gather_object(pictures))
        return [drawn[number] for number in sorted(drawn)] if self.accelerator.is_main_process else None

    def compare(self, label: str):
        """The pictures as the hypernetwork is now, and the grid of them beside those without it, called `label`.

        None and None but on the main process.
        """
        pictures = self.generate()
        if pictures is None:
            return None, None
        rows = [[*without, *with_it] for without, with_it in zip(self.without, pictures)]
        count = self.config.num_validation_images
        return pictures, preview_grid(rows, self.config.validation_prompt, ["without"] * count + [label] * count)

    def _sample(self, embeds):
        config, unet = self.config, self.pipeline.unet
        count, (width, height) = config.num_validation_images, config.size
        given, mask = pipeline_arguments([embeds] * count, [self.embeds[-1]] * count, unet.dtype)
        with text_mask(unet, mask):
            return self.pipeline(
                **given,
                num_inference_steps=config.validation_inference_steps,
                guidance_scale=config.validation_guidance_scale,
                height=height,
                width=width,
                generator=[torch.Generator().manual_seed(config.seed + i) for i in range(count)],
                output_type="latent",
            ).images

    def _decode(self, latents):
        pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")


def enable_tiling(vae):
    """Decode what is larger than `TILE` in tiles that overlap by a quarter, one after the other."""
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)


