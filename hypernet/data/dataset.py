"""What the trainer sees: items drawn from cached latents and prompts, and the order in which they come."""


import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hypernet.data.batch_sampler import Batch, EpochBatchSampler
from hypernet.data.buckets import size_table
from hypernet.data.captions import PromptSampler, read_templates
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.latents import ImageLatents, encode_latents
from hypernet.data.prompt_cache import CachedEmbeds, PromptEmbeds, open_embeds
from hypernet.stable_diffusion.conditioning import build_conditions
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.utils.errors import is_local_main_process
from hypernet.utils.hashing import derive_seed


def describe_data(source: ImageSource, pictures: list[ImageRecord], problems: list[str], batches: EpochBatchSampler, config) -> str:
    """What a run says at its start: which images it skips and why, how many it uses, at which sizes; what may be amiss."""
    lines = [f"skipped: {problem}" for problem in problems] + [f"note: {note}" for note in source.notes]
    wordless = [picture.row for picture in pictures if not any(source.captions[picture.row])]
    if wordless and config.caption_column and any("[filewords]" in template for template in read_templates(config.template)):
        lines.append(f"note: {len(wordless)} images have an empty caption, such as {source.name(wordless[0])}")
    if config.alpha_weight and not any(picture.has_alpha for picture in pictures):
        lines.append("note: --alpha_weight changes nothing, since no image has transparency")
    lines.append(f"images used: {len(pictures)}, skipped: {len(problems)}; batches per epoch: {len(batches)}")
    return "\n".join([*lines, size_table([picture.size for picture in pictures], batches.total)])


class TrainingDataset(torch.utils.data.Dataset):
    """Latents and prompts of the images. A batch is drawn anew at each access, from the seed, the epoch and the image.

    So noise, timestep, prompt, crop and flip of an image depend neither on what was drawn before (resuming is exact and
    previews disturb nothing) nor on which process asks.
    """

    def __init__(self, latents: ImageLatents, prompts: PromptSampler, embeds: PromptEmbeds, models: StableDiffusion, config):
        self.latents, self.prompts, self.embeds, self.is_xl = latents, prompts, embeds, models.base.is_xl
        self.num_train_timesteps, self.seed = models.scheduler.config.num_train_timesteps, config.seed
        self.alpha_weight, self.noise_offset = config.alpha_weight, config.noise_offset

    def __len__(self):
        return len(self.latents)

    def __getitems__(self, batch: Batch) -> dict:
        """The tensors of a batch, float32 but for the timesteps.

        latents and noise (B, channels, height, width); timesteps (B,); weights (B, 1, height or 1, width or 1) as
        `diffusion_loss` takes them; prompts; time_ids (B, 6), SDXL's; and `conditions`, if the prompts are cached.
        """
        rows = [self.sample(batch.epoch, index) for index in batch.indices]
        latents, noise, timesteps, weights, prompts, time_ids = zip(*rows)
        drawn = {
            "latents": torch.stack(latents),
            "noise": torch.stack(noise),
            "timesteps": torch.stack(timesteps),
            "weights": torch.stack(weights) * torch.tensor(batch.shares).view(-1, 1, 1, 1),
            "prompts": list(prompts),
            "time_ids": torch.stack(time_ids) if self.is_xl else None,
            "epoch": batch.epoch,
            "epoch_step": batch.epoch_step,
        }
        return {**drawn, "conditions": self.conditions(drawn)} if self.is_cached else drawn

    @property
    def is_cached(self) -> bool:
        """Whether no text encoder is needed any more."""
        return isinstance(self.embeds, CachedEmbeds)

    def conditions(self, batch: dict) -> dict:
        """What the UNet takes beside latents and timesteps: as it came with the batch, or encoded now."""
        if "conditions" in batch:
            return batch["conditions"]
        return build_conditions(self.embeds(batch["prompts"]), batch["time_ids"])

    def plain_conditions(self, index: int, count: int) -> dict:
        """Those of `count` times an image, not mirrored, with the prompt that it always gets."""
        embeds = self.embeds([self.prompts.sample(0, index)])
        sizes = self.latents.crops[index][0][0].time_ids() if self.is_xl else None
        return build_conditions(embeds * count, None if sizes is None else sizes.expand(count, -1))

    def sample(self, epoch: int, index: int):
        """(latents, noise, timestep, loss weights, prompt, SDXL's sizes) of an image in an epoch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "item", epoch, self.latents.ids[index]))
        _, crops, flips = self.latents.rows.shape
        crop = int(torch.randint(crops, (), generator=generator)) if crops > 1 else 0
        flip = int(torch.randint(flips, (), generator=generator)) if flips > 1 else 0
        latents = self.latents.sample(index, crop, flip, generator)
        noise, timestep = sample_noise_and_timestep(latents.shape, self.num_train_timesteps, generator)
        if self.noise_offset:
            noise = offset_noise(noise, self.noise_offset, generator)
        sizes = self.latents.crops[index][crop][flip].time_ids() if self.is_xl else None
        return latents, noise, timestep, self.weights(index, crop, flip), self.prompts.sample(epoch, index), sizes

    def weights(self, index: int, crop=0, flip=0) -> torch.Tensor:
        """How much each cell of a crop counts, (1, height or 1, width or 1)."""
        return self.latents.alpha_weights(index, crop, flip) if self.alpha_weight else torch.ones(1, 1, 1)


def build_loader(accelerator, dataset: TrainingDataset, batches: EpochBatchSampler):
    """A loader that brings batches to the device. It shares nothing out: `batches` has done so, without mixing sizes."""
    pin_memory = accelerator.device.type == "cuda"
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch, pin_memory=pin_memory)
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=pin_memory
    )


def encode_dataset(
    models: StableDiffusion, source: ImageSource, pictures: list[ImageRecord], config, vae_dtype
) -> TrainingDataset:
    """Encode what has not been encoded yet; a second run reads it from the cache.

    The VAE has the device to itself first, then the text encoders.
    """
    models.on_device(models.vae)
    latents = encode_latents(models, source, pictures, config, vae_dtype)
    prompts = PromptSampler(
        ids=latents.ids,
        captions=[source.captions[picture.row] for picture in pictures],
        templates=read_templates(config.template),
        name=config.name,
        seed=config.seed,
        shuffle_tags=config.shuffle_tags,
        keep_tags=config.keep_tags,
        tag_dropout=config.tag_dropout,
        caption_dropout=config.caption_dropout,
        variants=config.caption_variants,
    )
    if config.max_token_chunks and is_local_main_process():
        images = {
            prompt: source.name(picture.row)
            for index, picture in enumerate(pictures)
            for prompt in prompts.undropped(index)
        }
        if note := truncation_note(models, list(images), images):
            print(note)
    models.on_device(*models.text_encoders)
    embeds = open_embeds(models, prompts.every_prompt(), config.cache_dir)
    return TrainingDataset(latents, prompts, embeds, models, config)


def sample_noise_and_timestep(shape, num_train_timesteps: int, generator: torch.Generator):
    """Normal noise of `shape` and a timestep, uniform in 0..num_train_timesteps - 1, from `generator` (CPU)."""
    noise = torch.randn(shape, generator=generator)
    timestep = torch.randint(0, num_train_timesteps, (), generator=generator)
    return noise, timestep


def offset_noise(noise, strength: float, generator: torch.Generator):
    """Noise (C, height, width) with each channel shifted by `strength` times a normal number.

    Source: N. Guttenberg, "Diffusion with Offset Noise" (2023), as diffusers' `--noise_offset` has it.
    """
    return noise + strength * torch.randn(noise.shape[0], 1, 1, generator=generator)
