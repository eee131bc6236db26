"""Draw samples with fixed seeds while training, and lay them out in labelled grids."""

import textwrap

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hypernet.conditions import masked, pipeline_arguments
from hypernet.fonts import load_font
from hypernet.models import StableDiffusion, without_text_encoders
from hypernet.prompt_embeds import cut_note
from hypernet.sheet import MOST_LINES, Layout, lay_out
from hypernet.text import encode_prompts


class Previewer:
    """Samples of a few prompts from the model as it is at the moment, always from the same noise.

    Prompts are encoded when it is built. Its pipeline shares the models; it keeps torch's generators untouched. Several
    processes share the prompts out.
    """

    def __init__(self, models: StableDiffusion, config, accelerator: Accelerator):
        self.config, self.accelerator, self.vae = config, accelerator, models.vae
        self.vae.enable_slicing()  # one image at a time, for small cards
        self.embeds = encode_prompts(models, [*config.validation_prompt, ""])
        if note := cut_note(models, config.validation_prompt):
            accelerator.print(note)
        self.without = None  # the pictures without a hypernetwork
        # the text encoders may leave the device, and a pipeline takes theirs for its own
        self.pipeline = without_text_encoders(models)
        self.pipeline.set_progress_bar_config(disable=True)

    @torch.no_grad()
    def draw(self) -> list[list[Image.Image]] | None:
        """One row of pictures per prompt, on the main process; None on the others."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = range(process, len(self.config.validation_prompt), processes)
        drawn = dict(gather_object([(number, self._draw_prompt(self.embeds[number])) for number in mine]))
        return [drawn[number] for number in sorted(drawn)] if self.accelerator.is_main_process else None

    def compare(self, label: str):
        """The pictures as the hypernetwork is now, and the grid of them beside those without it, called `label`.

        None and None but on the main process.
        """
        pictures = self.draw()
        if pictures is None:
            return None, None
        rows = [[*without, *with_it] for without, with_it in zip(self.without, pictures)]
        count = self.config.num_validation_images
        return pictures, labelled_grid(rows, self.config.validation_prompt, ["without"] * count + [label] * count)

    def _draw_prompt(self, embeds):
        config, unet = self.config, self.pipeline.unet
        count, (width, height) = config.num_validation_images, config.size
        given, mask = pipeline_arguments([embeds] * count, [self.embeds[-1]] * count, unet.dtype)
        with masked(unet, mask):
            latents = self.pipeline(
                **given,
                num_inference_steps=config.validation_inference_steps,
                guidance_scale=config.validation_guidance_scale,
                height=height,
                width=width,
                generator=[torch.Generator().manual_seed(config.seed + i) for i in range(count)],
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
