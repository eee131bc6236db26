"""Generate previews with fixed seeds during training, in labeled grids."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers import AutoencoderKL
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.generation.preview_prompts import OPTIONS, PreviewPrompt, preview_labels, preview_prompts
from hypernet.generation.sampling import ImageSampler
from hypernet.generation.settings import GenerationSettings
from hypernet.stable_diffusion.model import StableDiffusion, latents_pipeline
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.training.failures import Failures
from hypernet.training.shutdown import Interrupted
from hypernet.utils.errors import reason
from hypernet.utils.image_grid import preview_grid

TILE = 512  # pixels per side; SD 1.x was trained at this size


class Previewer:
    """Generates previews of prompts with the current weights, always from the same noise.

    The constructor encodes the prompts. The VAE is on the device only while it decodes, and torch's global random state
    is untouched. Several processes split the prompts among themselves. A failure skips the previews but does not end
    the run.

    Args:
        prompts: what to preview. Default: the prompts of the options.

    Attributes:
        labels: a label for each prompt.
        base_previews: the previews without the hypernetwork, a row per prompt; None until they are generated.
    """

    def __init__(
        self,
        models: StableDiffusion,
        config: TrainingConfig,
        accelerator: Accelerator,
        failures: Failures | None = None,
        prompts: Sequence[PreviewPrompt] | None = None,
    ):
        self.config, self.accelerator, self.vae = config, accelerator, models.vae
        self.failures = failures or Failures(accelerator)
        self.prompts = preview_prompts(config) if prompts is None else list(prompts)
        self.labels = preview_labels(self.prompts)
        self.base_previews: list[list[Image.Image]] | None = None
        pipeline = latents_pipeline(models)  # only the UNet: the other parts may be on another device
        pipeline.set_progress_bar_config(disable=True)
        self.sampler = ImageSampler(models, pipeline)
        if config.enable_tiling:
            enable_tiling(self.vae)
        texts = [text for each in self.prompts for text in (each.prompt, each.negative_prompt)]
        self.embeds = self.sampler.encode(texts)
        if note := truncation_note(models, texts):
            accelerator.print(note)

    def generate(self, check: Callable[[], None] = lambda: None) -> list[list[Image.Image]] | None:
        """Return a row of previews per prompt on the main process; None on the others, or if generating has failed.

        Args:
            check: called between denoising steps; may raise `Interrupted`.

        Raises:
            Interrupted: on all processes, if `check` has raised it on one.
        """
        rows: dict[int, list[Image.Image]] = {}
        problem: Exception | None = None
        try:
            rows = self._generate_share(check)
        except Exception as error:  # such as out of memory; reported below, where the other processes wait
            problem = error.with_traceback(None)  # the traceback would keep memory in use
        outcomes = gather_object([(rows, type(problem) is Interrupted, problem and reason(problem))])
        if any(interrupted for _, interrupted, _ in outcomes):
            raise Interrupted
        with self.failures.tolerate("previews could not be generated"):
            if problems := [text for *_, text in outcomes if text]:
                raise RuntimeError(problems[0])
            rows = {number: row for share, *_ in outcomes for number, row in share.items()}
            return [rows[number] for number in sorted(rows)] if self.accelerator.is_main_process else None
        return None

    def compare(
        self, label: str, check: Callable[[], None] = lambda: None
    ) -> tuple[list[list[Image.Image]] | None, Image.Image | None]:
        """Return the current previews, and a grid that shows those without the hypernetwork beside them.

        Both are None on all but the main process, or if one of them has failed.

        Args:
            label: the column label of the current previews.
            check: see `generate`.

        Raises:
            Interrupted: see `generate`.
        """
        previews = self.generate(check)
        if previews is None:
            return None, None
        count, base = self.config.num_validation_images, self.base_previews
        rows = [[*before, *current] for before, current in zip(base or [[]] * len(previews), previews)]
        with self.failures.tolerate("previews could not be put into a grid"):
            return previews, preview_grid(rows, self.labels, ["without"] * count * bool(base) + [label] * count)
        return None, None

    def base_grid(self) -> Image.Image | None:
        """Return a grid of the previews without the hypernetwork; None if there are none here."""
        if self.base_previews is None:
            return None
        with self.failures.tolerate("previews could not be put into a grid"):
            return preview_grid(self.base_previews, self.labels, ["without"] * self.config.num_validation_images)
        return None

    def is_due(self, step: int) -> bool:
        """Whether previews are due after a step."""
        return step > 0 and step % self.config.validation_steps == 0

    def _generate_share(self, check: Callable[[], None]) -> dict[int, list[Image.Image]]:
        """Return the previews of this process's prompts, by their number."""
        share = range(self.accelerator.process_index, len(self.prompts), self.accelerator.num_processes)
        latents = {number: self._sample(self.prompts[number], check) for number in share}
        decoded = {}
        try:
            self.vae.to(self.accelerator.device)
            for number in share:
                check()
                decoded[number] = self.sampler.decode(latents[number])
        finally:
            self.vae.to("cpu")
        return decoded

    def _sample(self, prompt: PreviewPrompt, check: Callable[[], None]) -> torch.Tensor:
        """Return the latents of a prompt's previews, (images, channels, height, width)."""
        first = GenerationSettings(**{name: getattr(prompt, name) for name in ("prompt", *OPTIONS)})
        seeds = range(prompt.seed, prompt.seed + self.config.num_validation_images)
        batch = [dataclasses.replace(first, seed=seed) for seed in seeds]
        return self.sampler.sample(batch, self.embeds, check)


def enable_tiling(vae: AutoencoderKL) -> None:
    """Decode images larger than `TILE` in tiles that overlap by a quarter, one after another."""
    vae.enable_tiling()
    vae.tile_sample_min_size = TILE
    vae.tile_latent_min_size = TILE // 2 ** (len(vae.config.block_out_channels) - 1)
