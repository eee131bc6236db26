"""Draw samples with fixed seeds while training, and lay them out in labelled grids."""

import textwrap

import torch
from diffusers import StableDiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hypernet.fonts import load_font
from hypernet.models import StableDiffusion, encode_prompts
from hypernet.sheet import MOST_LINES, Layout, lay_out


class Previewer:
    """Samples of a few prompts from the model as it is at the moment, always from the same noise.

    Prompts are encoded when it is built. Its pipeline shares the models; it keeps torch's generators untouched.
    """

    def __init__(self, models: StableDiffusion, scheduler, prompts, num_images, steps, guidance_scale, seed):
        self.vae, self.num_images = models.vae, num_images
        self.vae.enable_slicing()  # one image at a time, for small cards
        self.steps, self.guidance_scale, self.seed = steps, guidance_scale, seed
        self.embeds = encode_prompts(models, [*prompts, ""])
        self.pipeline = StableDiffusionPipeline(
            vae=models.vae,
            text_encoder=None,
            tokenizer=None,
            unet=models.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(self, width: int, height: int) -> list[list[Image.Image]]:
        """One row of `num_images` pictures per prompt, drawn a prompt at a time."""
        return [self._draw_prompt(embeds, width, height) for embeds in self.embeds[:-1]]

    def _draw_prompt(self, embeds, width, height):
        count, unet = self.num_images, self.pipeline.unet
        latents = self.pipeline(
            prompt_embeds=embeds.to(unet.dtype).expand(count, -1, -1),
            negative_prompt_embeds=self.embeds[-1].to(unet.dtype).expand(count, -1, -1),
            num_inference_steps=self.steps,
            guidance_scale=self.guidance_scale,
            height=height,
            width=width,
            generator=[torch.Generator().manual_seed(self.seed + i) for i in range(count)],
            output_type="latent",
        ).images
        pixels = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")


def labelled_grid(rows: list[list[Image.Image]], row_labels: list[str], column_labels: list[str]) -> Image.Image:
    """A sheet whose margins are the same whatever the labels say, so that those of a run lie upon each other."""
    size = max(11, rows[0][0].height // 18)
    font = load_font(size, "".join([*row_labels, *column_labels]))
    line, gap = font.getbbox("A")[3] + 4, max(2, rows[0][0].height // 64)
    layout = Layout(font, line, left=10 * size, top=2 * size, gap=gap, row_labels=(size // 2, "lm"))
    beside = [textwrap.wrap(label, 16)[:MOST_LINES] for label in row_labels]
    return lay_out(rows, beside, [[label] for label in column_labels], layout)
