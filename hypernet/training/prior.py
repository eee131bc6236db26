"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242): keep what the base model makes of other prompts.

Images that the base model has generated join each batch. There, the hypernetwork is asked to change nothing: the target
is the base model's own prediction, which asks for less than the noise itself, as DreamBooth does.
"""

import dataclasses
from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler

from hypernet.config import TrainingConfig
from hypernet.data.dataset import sample_noise_and_timestep
from hypernet.data.prompts import PromptSampler, read_prior_prompts, without_template_words
from hypernet.modeling.attachment import HypernetworkUNet, set_strength
from hypernet.stable_diffusion.conditioning import build_conditions, cast_conditions, time_ids
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import Embeds
from hypernet.training.accelerator import print_main
from hypernet.training.base_samples import build_previewer, sample_base
from hypernet.training.loss import diffusion_loss
from hypernet.training.previews import Previewer
from hypernet.training.run import Run
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed
from hypernet.utils.sequences import spread

MOST_PROMPTS = 200  # made from captions and previews; a file may have more
SEED = 20_000  # added to that of the options: other noise than that of previews and of images for the style distance
SETTINGS = ("validation_guidance_scale", "validation_inference_steps", "validation_sampler")
RECORDED = "prior"  # in run.json: the prompts, and the values of `SETTINGS`, which a resumed run may change


class Prior:
    """Images of the base model, and the loss that keeps them.

    Args:
        previewer: of one image for each of its prompts.
        embeds: the embeddings of these prompts.
    """

    def __init__(self, run: Run, models: StableDiffusion, previewer: Previewer, embeds: Sequence[Embeds]) -> None:
        self.run, self.models, self.previewer, self.embeds = run, models, previewer, embeds
        self.latents: list[torch.Tensor] = []  # (channels, height, width) each

    def generate(self) -> None:
        """Generate the images that the cache lacks; no hypernetwork may be attached yet. All processes call this.

        Raises:
            UserError: if that fails.
        """
        try:
            self.latents = sample_base(self.run, self.models, self.previewer, "Generating images of the base model")
        except ValueError as error:
            raise UserError(f"--prior_weight {self.run.config.prior_weight:g}: {error}") from None

    @property
    def batch_size(self) -> int:
        """The images of a process that join a batch: half as many as its own, but one at least."""
        return max(1, self.run.config.train_batch_size // 2)

    def sample(self, place: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[int]]:
        """Return what joins a batch: latents and noise (n, C, H, W), timesteps (n,), and the numbers of the images.

        All of it depends only on the seed, the place of the batch and the process.

        Args:
            place: round and batch of the round.
        """
        images, noises, timesteps = [], [], []
        first = self.run.accelerator.process_index * self.batch_size
        for number in range(first, first + self.batch_size):
            seed = derive_seed(self.run.config.seed, "prior", *place, number)
            generator = torch.Generator().manual_seed(seed)
            image = int(torch.randint(len(self.latents), (), generator=generator))
            total = self.models.scheduler.config.num_train_timesteps
            noise, timestep = sample_noise_and_timestep(self.latents[image].shape, total, generator)
            images.append(image)
            noises.append(noise)
            timesteps.append(timestep)
        return torch.stack([self.latents[i] for i in images]), torch.stack(noises), torch.stack(timesteps), images

    def loss(
        self,
        model: torch.nn.Module,
        bare_model: HypernetworkUNet,
        place: tuple[int, int],
        snr_table: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return the mean squared difference between the predictions with and without the hypernetwork, a scalar.

        Args:
            model: `bare_model`, possibly prepared for distributed training.
            place: see `sample`.
            snr_table: loss weight per timestep, from `snr_weights`.
        """
        device, dtype = self.run.accelerator.device, self.run.dtype
        scheduler: DDPMScheduler = self.models.scheduler
        latents, noise, timesteps, images = self.sample(place)
        latents, noise, timesteps = latents.to(device), noise.to(device), timesteps.to(device)
        size = self.previewer.prompts[0].size[::-1]
        sizes = time_ids(size, (0, 0), size).expand(len(images), -1) if self.models.base.is_xl else None
        conditions = build_conditions([self.embeds[image] for image in images], sizes)
        conditions = cast_conditions(conditions, device, dtype)
        noisy = scheduler.add_noise(latents, noise, timesteps).to(dtype)
        set_strength(bare_model.unet, 0.0)
        try:
            with torch.no_grad(), self.run.accelerator.autocast():
                target = bare_model.unet(noisy, timesteps, **conditions).sample
        finally:
            set_strength(bare_model.unet, 1.0)
        weights = torch.full((len(images), 1, 1, 1), 1 / len(images), device=device)
        if snr_table is not None:
            weights = weights * snr_table[timesteps].view(-1, 1, 1, 1)
        return diffusion_loss(model(noisy, timesteps, **conditions), target, weights)


def recall_prior(folder: RunFolder, starts_over: bool) -> None:
    """Keep what the run in the folder has recorded, so that a resumed run has the same images."""
    recorded = None if starts_over else folder.identity.record.get(RECORDED)
    if isinstance(recorded, dict) and {"prompts", *SETTINGS} <= set(recorded):
        folder.extras[RECORDED] = recorded


def prepare_prior(run: Run, models: StableDiffusion, prompts: PromptSampler) -> Prior | None:
    """Return the prior of a run with `--prior_weight`, else None. The text encoders must still be there.

    Args:
        prompts: of the training images.
    """
    if not run.config.prior_weight:
        return None
    texts = prior_prompts(run.config, prompts, [preview.prompt for preview in run.previews])
    settings = {name: getattr(run.config, name) for name in SETTINGS}
    kept = run.folder.extras.setdefault(RECORDED, {"prompts": texts, **settings})
    if run.config.prior_prompts and kept["prompts"] != texts:
        note = f"note: {run.config.prior_prompts} has changed; the run keeps the prompts that it began with"
        print_main(run.accelerator, note)
    texts = kept["prompts"]
    count = max(len(texts), min(len(prompts.ids), MOST_PROMPTS))
    texts = [texts[number % len(texts)] for number in range(count)]
    config = dataclasses.replace(run.config, **{name: kept[name] for name in SETTINGS})
    for name in ("validation_seed", "validation_resolution", "validation_negative_prompt"):
        setattr(config, name, getattr(TrainingConfig, name))
    previewer = build_previewer(run, models, texts, SEED, config)
    encoded = {
        text: Embeds(*(each if each is None else each.cpu() for each in previewer.embeds[text])) for text in texts
    }
    return Prior(run, models, previewer, [encoded[text] for text in texts])


def prior_prompts(config: TrainingConfig, prompts: PromptSampler, previews: Sequence[str]) -> list[str]:
    """Return the prompts to keep: those of `--prior_prompts`, else captions and previews without the template's words."""
    if config.prior_prompts:
        return read_prior_prompts(config.prior_prompts)
    captions = [next(iter(captions), "") for captions in prompts.captions]
    plain = [without_template_words(prompts.templates, preview, str(config.name)) for preview in previews]
    return spread(list(dict.fromkeys([*plain, *captions])), MOST_PROMPTS)
