"""The training dataset: samples from cached latents and prompts, determined by seed, epoch and image."""

import typing

import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import Batch, EpochBatchSampler
from hypernet.data.buckets import size_table
from hypernet.data.captions import caption_notes
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.latents import ImageLatents, encode_latents
from hypernet.data.prompt_cache import CachedEmbeds, PromptEmbeds, open_embeds
from hypernet.data.prompts import PromptSampler, fill_template, read_templates, template_notes
from hypernet.stable_diffusion.conditioning import build_conditions
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.text_encoding import truncation_note
from hypernet.utils.errors import MAX_MESSAGE, counted, is_local_main_process, one_line
from hypernet.utils.hashing import derive_seed


def describe_data(
    source: ImageSource,
    records: list[ImageRecord],
    problems: list[str],
    batches: EpochBatchSampler,
    config: TrainingConfig,
) -> str:
    """Return what a run prints about its data: skipped images, likely mistakes, and the number of images per size."""
    lines = [f"skipped: {problem}" for problem in problems] + [f"note: {note}" for note in source.notes]
    uncaptioned = [record.row for record in records if not any(source.captions[record.row])]
    templates, captions = read_templates(config.template), [source.captions[record.row] for record in records]
    uses_captions = any("[filewords]" in template for template in templates)
    if uncaptioned and config.caption_column and uses_captions:
        count = counted(len(uncaptioned), "image has an empty caption", "images have an empty caption")
        lines.append(f"note: {count}, such as {source.name(uncaptioned[0])}")
    if uses_captions and source.is_folder:
        captioned = [source.captioned[record.row] for record in records]
        lines += [f"note: {note}" for note in caption_notes([each[0] for each in captions], captioned)]
    lines += [f"note: {note}" for note in template_notes(config.template, captions, config.prompt_emphasis)]
    if config.alpha_weight and not any(record.has_alpha for record in records):
        lines.append("note: --alpha_weight has no effect: no image has transparency")
    lines.append(f"images used: {len(records)}, skipped: {len(problems)}; batches per epoch: {len(batches)}")
    some = captions[0], captions[len(captions) // 2], captions[-1]
    filled = (fill_template(templates[i % len(templates)], each[0], str(config.name)) for i, each in enumerate(some))
    lines.append("prompts such as: " + ", ".join(f'"{one_line(prompt, 80)}"' for prompt in dict.fromkeys(filled)))
    lines = [one_line(line, MAX_MESSAGE) for line in lines]  # escapes control characters in file names and captions
    return "\n".join([*lines, size_table([record.size for record in records], batches.total_batch_size)])


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
    So resuming is exact, and previews disturb nothing.
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

    def __len__(self) -> int:
        return len(self.latents)

    def __getitems__(self, batch: Batch) -> dict:
        """Return the tensors of a batch, float32 except for the timesteps.

        latents and noise are (B, channels, height, width), timesteps (B,), weights (B, 1, height or 1, width or 1) as
        `diffusion_loss` takes them, time_ids (B, 6) for SDXL or None. With cached prompts there are `conditions`.
        """
        samples = [self.sample(batch.epoch, index) for index in batch.indices]
        items = {
            "latents": torch.stack([sample.latents for sample in samples]),
            "noise": torch.stack([sample.noise for sample in samples]),
            "timesteps": torch.stack([sample.timestep for sample in samples]),
            "weights": torch.stack([sample.weights for sample in samples])
            * torch.tensor(batch.shares).view(-1, 1, 1, 1),
            "prompts": [sample.prompt for sample in samples],
            "time_ids": torch.stack([sample.time_ids for sample in samples]) if self.is_xl else None,
            "epoch": batch.epoch,
            "epoch_step": batch.epoch_step,
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
        time_ids = self.latents.crops[index][0][0].time_ids().expand(count, -1) if self.is_xl else None
        return build_conditions(embeds * count, time_ids)

    def sample(self, epoch: int, index: int) -> Sample:
        """Return what an epoch trains on for an image."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "item", epoch, self.latents.ids[index]))
        _, crops, flips = self.latents.rows.shape
        crop = int(torch.randint(crops, (), generator=generator)) if crops > 1 else 0
        flip = int(torch.randint(flips, (), generator=generator)) if flips > 1 else 0
        latents = self.latents.sample(index, crop, flip, generator)
        noise, timestep = sample_noise_and_timestep(latents.shape, self.num_train_timesteps, generator)
        if self.noise_offset:
            noise = offset_noise(noise, self.noise_offset, generator)
        time_ids = self.latents.crops[index][crop][flip].time_ids() if self.is_xl else None
        weights, prompt = self.weights(index, crop, flip), self.prompts.sample(epoch, index)
        return Sample(latents, noise, timestep, weights, prompt, time_ids)

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
) -> TrainingDataset:
    """Encode the images and prompts that are not in the cache yet.

    The VAE has the device to itself first, then the text encoders.

    Raises:
        UserError: as `encode_latents` does.
    """
    models.on_device(models.vae)
    latents = encode_latents(models, source, records, config, vae_dtype)
    prompts = PromptSampler(
        ids=latents.ids,
        captions=[source.captions[record.row] for record in records],
        templates=read_templates(config.template),
        name=str(config.name),
        seed=config.seed,
        shuffle_tags=config.shuffle_tags,
        keep_tags=config.keep_tags,
        tag_dropout=config.tag_dropout,
        caption_dropout=config.caption_dropout,
        variants=config.caption_variants,
    )
    if config.max_token_chunks and is_local_main_process():
        names = {
            prompt: source.name(record.row)
            for index, record in enumerate(records)
            for prompt in prompts.full_prompts(index)
        }
        if note := truncation_note(models, list(names), names):
            print(note)
    models.on_device(*models.text_encoders)
    embeds = open_embeds(models, prompts.all_prompts(), config.cache_dir)
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
