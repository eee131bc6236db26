"""Generate previews with fixed seeds during training, in labeled grids."""

import dataclasses
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.generation.preview_prompts import OPTIONS, PreviewPrompt, preview_labels, preview_prompts
from hypernet.generation.sampling import ImageSampler
from hypernet.generation.settings import GenerationSettings
from hypernet.stable_diffusion.model import StableDiffusion, latents_pipeline
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.training.failures import Failures
from hypernet.training.shutdown import gather_shares
from hypernet.utils.image_grid import preview_grid

BASE = "base"  # the state without the hypernetwork
TILE = 512  # pixels per side; SD 1.x was trained at this size

Latents = dict[int, torch.Tensor]  # number of a prompt -> (images, channels, height, width)


class Previewer:
    """Generates previews of prompts with the current weights, always from the same noise.

    The constructor encodes the prompts. The VAE is on the device only while it decodes, and torch's global random state
    is untouched. Several processes split the prompts among themselves. A failure skips the previews but does not end
    the run.

    Args:
        prompts: what to preview. Default: the prompts of the options.

    Attributes:
        labels: a label for each prompt.
        note: on prompts that are too long for the model, or None.
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
        self._sampled: tuple[object, Latents] = (None, {})
        pipeline = latents_pipeline(models)  # only the UNet: the other parts may be on another device
        pipeline.set_progress_bar_config(disable=True)
        self.sampler = ImageSampler(models, pipeline)
        if config.enable_tiling:
            enable_tiling(self.vae)
        texts = [text for each in self.prompts for text in (each.prompt, each.negative_prompt)]
        self.embeds = self.sampler.encode(texts)
        self.note = truncation_note(models, texts)

    def generate(
        self, check: Callable[[], None] = lambda: None, state: object = None
    ) -> list[list[Image.Image]] | None:
        """Return a row of previews per prompt on the main process; None on the others, or if generating has failed.

        Args:
            check: called between denoising steps; may raise `Interrupted`.
            state: see `sample`.

        Raises:
            Interrupted: on all processes, if `check` has raised it on one.
        """
        shares, problem = gather_shares(lambda: self._generate_share(check, state))
        with self.failures.tolerate("previews could not be generated"):
            if problem:
                raise RuntimeError(problem)
            rows = {number: row for share in shares for number, row in share.items()}
            return [rows[number] for number in sorted(rows)] if self.accelerator.is_main_process else None
        return None

    def compare(
        self, label: str, check: Callable[[], None] = lambda: None, state: object = None
    ) -> tuple[list[list[Image.Image]] | None, Image.Image | None]:
        """Return the current previews, and a grid that shows those without the hypernetwork beside them.

        Both are None on all but the main process, or if one of them has failed.

        Args:
            label: the column label of the current previews.
            check: see `generate`.
            state: see `sample`.

        Raises:
            Interrupted: see `generate`.
        """
        previews = self.generate(check, state)
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

    def sample(self, check: Callable[[], None] = lambda: None, state: object = None) -> Latents:
        """Return the latents of this process's previews by the number of their prompt.

        Args:
            check: see `generate`.
            state: says which weights the hypernetwork has; for the same ones as the last time, nothing is sampled
                again. None: not known.
        """
        if state is None or state != self._sampled[0]:
            share = range(self.accelerator.process_index, len(self.prompts), self.accelerator.num_processes)
            self._sampled = state, {number: self.sample_prompt(self.prompts[number], check) for number in share}
        return self._sampled[1]

    def holds(self, state: object) -> bool:
        """Whether the previews of this state were the last that have been sampled."""
        return self._sampled[0] == state

    def _generate_share(self, check: Callable[[], None], state: object) -> dict[int, list[Image.Image]]:
        """Return the previews of this process's prompts, by their number."""
        latents = self.sample(check, state)
        decoded = {}
        try:
            self.vae.to(self.accelerator.device)
            for number, of_prompt in latents.items():
                check()
                decoded[number] = self.sampler.decode(of_prompt)
        finally:
            self.vae.to("cpu")
        return decoded

    def sample_prompt(self, prompt: PreviewPrompt, check: Callable[[], None] = lambda: None) -> torch.Tensor:
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
