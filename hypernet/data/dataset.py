"""The training dataset: samples from cached latents and prompts, determined by seed, epoch and image."""

import collections
import itertools
import typing
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import Batch, EpochBatchSampler
from hypernet.data.buckets import size_table
from hypernet.data.caption_remarks import caption_remarks
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.latents import ImageLatents, encode_latents, unique_ids
from hypernet.data.processes import ALONE, Processes
from hypernet.data.prompt_cache import CachedEmbeds, PromptEmbeds, open_embeds
from hypernet.data.prompts import PromptSampler
from hypernet.stable_diffusion.conditioning import build_conditions
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.utils.errors import MAX_MESSAGE, counted, one_line
from hypernet.utils.hashing import derive_seed

EPOCHS_SHOWN = 20  # searched for a prompt of an image that --caption_dropout does not empty


def describe_data(
    source: ImageSource,
    records: list[ImageRecord],
    problems: list[str],
    batches: EpochBatchSampler,
    config: TrainingConfig,
) -> str:
    """Return what a run prints about its data: skipped images, likely mistakes, and the number of images per size."""
    lines = [f"skipped: {problem}" for problem in problems] + [f"note: {note}" for note in source.notes]
    lines += [f"note: {note}" for note in caption_remarks(source, records, config)]
    if config.alpha_weight and not any(record.has_alpha for record in records):
        lines.append("note: --alpha_weight has no effect: no image has transparency")
    repeated = f"; with repeats {batches.visits} per epoch" if batches.visits > len(records) else ""
    used = f"images used: {len(records)}, skipped: {len(problems)}{repeated}"
    lines.append(f"{used}; batches per epoch: {len(batches)}")
    files = collections.Counter(source.template_files[record.row] for record in records if source.template_files)
    if own := [f"{file} ({counted(count, 'image')})" for file, count in files.items() if file]:
        lines.append(f"folders with templates of their own: {', '.join(own)}")
    prompts = some_prompts(build_prompt_sampler(source, records, config))
    lines.append("prompts such as: " + ", ".join(f'"{one_line(prompt, 80)}"' for prompt in prompts))
    lines = [one_line(line, MAX_MESSAGE) for line in lines]  # escapes control characters in file names and captions
    repeats = [record.repeats for record in records]
    table = size_table([record.size for record in records], batches.total_batch_size, repeats, batches.rounds)
    return "\n".join([*lines, table])


def build_prompt_sampler(source: ImageSource, records: list[ImageRecord], config: TrainingConfig) -> PromptSampler:
    """Return what samples the prompts of the images."""
    templates = source.templates(config.template)
    of_images = [templates[record.row] for record in records]
    differ = any(lines != of_images[0] for lines in of_images)
    return PromptSampler(
        ids=unique_ids([record.sha256 for record in records]),
        captions=[source.captions[record.row] for record in records],
        templates=list(dict.fromkeys(itertools.chain(*of_images))) if differ else of_images[0],
        name=str(config.name),
        seed=config.seed,
        shuffle_tags=config.shuffle_tags,
        keep_tags=config.keep_tags,
        tag_dropout=config.tag_dropout,
        caption_dropout=config.caption_dropout,
        variants=config.caption_variants,
        tag_separator=config.tag_separator,
        image_templates=of_images if differ else None,
    )


def some_prompts(prompts: PromptSampler, count: int = 3) -> list[str]:
    """Return prompts that training samples: for images spread over the dataset, each in its first epoch that has one."""
    indices = dict.fromkeys(round(i * (len(prompts.ids) - 1) / max(count - 1, 1)) for i in range(count))
    sampled = ((prompts.sample(epoch, index) for epoch in range(EPOCHS_SHOWN)) for index in indices)
    return list(dict.fromkeys(next(filter(None, of_image), "") for of_image in sampled))


class Sample(typing.NamedTuple):
    """An image as a training step sees it, with everything random about it settled."""

    latents: torch.Tensor  # (channels, height, width)
    noise: torch.Tensor  # like latents
    timestep: torch.Tensor  # ()
    weights: torch.Tensor  # of the loss, (1, height or 1, width or 1)
    prompt: str
    time_ids: torch.Tensor | None  # (6,), SDXL's


class TrainingDataset(torch.utils.data.Dataset):
    """Latents and prompts of the images, sampled anew at each access.

    Noise, timestep, prompt, crop and flip depend only on seed, epoch and image, not on earlier accesses or the process.
    So resuming is exact, and previews disturb nothing. If images are repeated, "epoch" means the pass over the image.
    """

    def __init__(
        self,
        latents: ImageLatents,
        prompts: PromptSampler,
        embeds: PromptEmbeds,
        models: StableDiffusion,
        config: TrainingConfig,
    ):
        self.latents, self.prompts, self.embeds, self.is_xl = latents, prompts, embeds, models.base.is_xl
        self.num_train_timesteps, self.seed = models.scheduler.config.num_train_timesteps, config.seed
        self.alpha_weight, self.noise_offset = config.alpha_weight, config.noise_offset
        self.flip_probability = config.flip_probability

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, batch: Batch) -> dict:
        """Return the tensors of a batch, float32 except for the timesteps.

        latents and noise are (B, channels, height, width), timesteps (B,), weights (B, 1, height or 1, width or 1) as
        `diffusion_loss` takes them, time_ids (B, 6) for SDXL or None. With cached prompts there are `conditions`.
        """
        passes = batch.passes or [batch.epoch] * len(batch.indices)
        samples = [self.sample(number, index) for number, index in zip(passes, batch.indices)]
        return {**self.collate(samples, batch.shares), "epoch": batch.epoch, "epoch_step": batch.epoch_step}

    def collate(self, samples: Sequence[Sample], shares: Sequence[float]) -> dict:
        """Return samples of one size as a batch, without its place in the data.

        Args:
            shares: the weight of each sample in the loss.
        """
        items = {
            "latents": torch.stack([sample.latents for sample in samples]),
            "noise": torch.stack([sample.noise for sample in samples]),
            "timesteps": torch.stack([sample.timestep for sample in samples]),
            "weights": torch.stack([sample.weights for sample in samples]) * torch.tensor(shares).view(-1, 1, 1, 1),
            "prompts": [sample.prompt for sample in samples],
            "time_ids": torch.stack([sample.time_ids for sample in samples]) if self.is_xl else None,
        }
        return {**items, "conditions": self.conditions(items)} if self.is_cached else items

    @property
    def is_cached(self) -> bool:
        """Whether all prompts are cached, so that no text encoder is needed."""
        return isinstance(self.embeds, CachedEmbeds)

    def conditions(self, batch: dict) -> dict:
        """Return the UNet's arguments besides latents and timesteps, from the batch if it has them, else encoded."""
        if "conditions" in batch:
            return batch["conditions"]
        return build_conditions(self.embeds(batch["prompts"]), batch["time_ids"])

    def plain_conditions(self, index: int, count: int) -> dict:
        """Return the conditions for `count` copies of an image, not mirrored, with its prompt of epoch 0."""
        embeds = self.embeds([self.prompts.sample(0, index)])
        time_ids = self.latents.time_ids(index).expand(count, -1) if self.is_xl else None
        return build_conditions(embeds * count, time_ids)

    def sample(self, epoch: int, index: int) -> Sample:
        """Return what an epoch trains on for an image."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "item", epoch, self.latents.ids[index]))
        _, crops, flips = self.latents.rows.shape
        crop = int(torch.randint(crops, (), generator=generator)) if crops > 1 else 0
        flip = int(self._is_flipped(generator)) if flips > 1 else 0
        latents = self.latents.sample(index, crop, flip, generator)
        noise, timestep = sample_noise_and_timestep(latents.shape, self.num_train_timesteps, generator)
        if self.noise_offset:
            noise = offset_noise(noise, self.noise_offset, generator)
        time_ids = self.latents.time_ids(index, crop, flip) if self.is_xl else None
        weights, prompt = self.weights(index, crop, flip), self.prompts.sample(epoch, index)
        return Sample(latents, noise, timestep, weights, prompt, time_ids)

    def _is_flipped(self, generator: torch.Generator) -> bool:
        if self.flip_probability == 0.5:  # as in earlier versions, which had no other probability
            return bool(torch.randint(2, (), generator=generator))
        return bool(torch.rand((), generator=generator) < self.flip_probability)

    def weights(self, index: int, crop: int = 0, flip: int = 0) -> torch.Tensor:
        """Return the loss weight of each latent cell of a crop, (1, height or 1, width or 1)."""
        return self.latents.alpha_weights(index, crop, flip) if self.alpha_weight else torch.ones(1, 1, 1)


def build_loader(accelerator: Accelerator, dataset: TrainingDataset, batches: EpochBatchSampler) -> DataLoader:
    """Return a loader that moves batches to the device.

    Accelerate must not split them among processes, as `batches` has already done so.
    """
    pin_memory = accelerator.device.type == "cuda"
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch, pin_memory=pin_memory)
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=pin_memory
    )


def encode_dataset(
    models: StableDiffusion,
    source: ImageSource,
    records: list[ImageRecord],
    config: TrainingConfig,
    vae_dtype: torch.dtype,
    processes: Processes = ALONE,
) -> TrainingDataset:
    """Encode the images and prompts that are not in the cache yet.

    The VAE has the device to itself first, then the text encoders.

    Args:
        processes: those that share this work. Each calls this with the same images.

    Raises:
        UserError: as `encode_latents` does.
    """
    models.on_device(models.vae)
    latents = encode_latents(models, source, records, config, vae_dtype, processes)
    prompts = build_prompt_sampler(source, records, config)
    if config.max_token_chunks and processes.index == 0:
        names = {
            prompt: source.name(record.row)
            for index, record in enumerate(records)
            for prompt in prompts.full_prompts(index)
        }
        if note := truncation_note(models, list(names), names):
            print(note)
    models.on_device(*models.text_encoders)
    embeds = open_embeds(models, prompts.all_prompts(), config.cache_dir, processes)
    return TrainingDataset(latents, prompts, embeds, models, config)


def sample_noise_and_timestep(
    shape: tuple[int, ...], num_train_timesteps: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return normal noise of `shape`, and a timestep uniform in 0..num_train_timesteps - 1, from a CPU generator."""
    noise = torch.randn(shape, generator=generator)
    timestep = torch.randint(0, num_train_timesteps, (), generator=generator)
    return noise, timestep


def offset_noise(noise: torch.Tensor, strength: float, generator: torch.Generator) -> torch.Tensor:
    """Shift each channel of the noise, (channels, height, width), by `strength` times a normal random number.

    Source: N. Guttenberg, "Diffusion with Offset Noise" (2023), as in diffusers' `--noise_offset`.
    """
    return noise + strength * torch.randn(noise.shape[0], 1, 1, generator=generator)
