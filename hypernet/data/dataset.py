"""What the trainer sees: items drawn from cached latents and prompts, and the order in which they come."""

from typing import NamedTuple

import numpy as np
import torch
from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader

from hypernet.data.captions import Prompts
from hypernet.stable_diffusion.conditioning import conditions
from hypernet.utils.errors import is_first
from hypernet.data.image_index import Picture
from hypernet.data.latents import Latents, encode_pictures
from hypernet.training.loss import draw_noise_and_timestep, offset_noise
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.data.prompt_cache import CachedEmbeds, PromptEmbeds, cut_note, open_embeds
from hypernet.utils.seeds import derive_seed
from hypernet.data.buckets import size_table
from hypernet.data.image_source import Source


class Batch(NamedTuple):
    """Images of one size, this process's share of a batch. It travels through PyTorch's loader as "the indices"."""

    epoch: int
    epoch_step: int
    indices: list[int]
    shares: list[float]  # what each adds to this process's loss; 0 for one that only fills the batch up


class EpochBatches(torch.utils.data.Sampler):
    """The batches of a run, without end: every image once per epoch, in a new order, in batches of one size.

    What is left over of a size comes in a smaller batch. Several processes get equally many images of each; where they
    cannot, the batch is filled up with images that count nothing. Shares are such that the mean of the processes' losses
    is the mean over the batch's images. `start` is the first (epoch, batch of the epoch).
    """

    def __init__(self, pictures: list[Picture], batch_size: int, seed: int, processes=1, process=0, start=(0, 0)):
        sizes = [picture.size for picture in pictures]
        self.restarts = False
        self.seed, self.processes, self.process, self.start = seed, processes, process, start
        self.total = batch_size * processes
        ids = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
        which = np.array([ids[size] for size in sizes])
        images = [(picture.sha256, picture.size) for picture in pictures]
        self.fingerprint = f"{derive_seed(self.total, *images):x}"
        self.groups = [torch.from_numpy(np.flatnonzero(which == number)) for number in range(len(ids))]

    def __len__(self):
        """Batches per epoch."""
        return sum(-(-len(group) // self.total) for group in self.groups)

    @property
    def shapes(self) -> int:
        """How many shapes the batches have: their sizes, and what is left over of each."""
        shares = [{len(part) for part in torch.arange(len(group)).split(self.total)} for group in self.groups]
        return sum(map(len, shares))

    def __iter__(self):
        epoch, skipped = self.start
        while True:
            for epoch_step, indices in enumerate(self._epoch(epoch)):
                if epoch_step >= skipped:
                    yield self._share(epoch, epoch_step, indices.tolist())
            epoch, skipped = epoch + 1, 0

    def state_dict(self) -> dict:
        """Where the next batch is, and among which images and batches."""
        return {"start": self.start, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict):
        """Go on there; with other images, or other batches of them, at the beginning of the next epoch."""
        same = state["fingerprint"] == self.fingerprint
        epoch, epoch_step = state["start"]
        self.start, self.restarts = ((epoch, epoch_step) if same else (epoch + 1, 0)), not same

    def _epoch(self, epoch):
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        orders = [group[torch.randperm(len(group), generator=generator)] for group in self.groups]
        batches = [batch for order in orders for batch in order.split(self.total)]
        if len(self.groups) > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _share(self, epoch, epoch_step, indices):
        each = -(-len(indices) // self.processes)
        shares = [self.processes / len(indices)] * len(indices)
        filling = each * self.processes - len(indices)
        mine = slice(self.process * each, (self.process + 1) * each)
        return Batch(epoch, epoch_step, (indices + indices[:1] * filling)[mine], (shares + [0.0] * filling)[mine])


def describe_data(source: Source, pictures: list[Picture], problems: list[str], batches: EpochBatches, config) -> str:
    """What a run says at its start: which images it skips and why, how many it uses, at which sizes; what may be amiss."""
    lines = [f"skipped: {problem}" for problem in problems] + [f"note: {note}" for note in source.notes]
    wordless = [picture.row for picture in pictures if not any(source.captions[picture.row])]
    if wordless and config.caption_column and any("[filewords]" in template for template in config.templates):
        lines.append(f"note: {len(wordless)} images have an empty caption, such as {source.name(wordless[0])}")
    if config.alpha_weight and not any(picture.has_alpha for picture in pictures):
        lines.append("note: --alpha_weight changes nothing, since no image has transparency")
    lines.append(f"images used: {len(pictures)}, skipped: {len(problems)}; batches per epoch: {len(batches)}")
    return "\n".join([*lines, size_table([picture.size for picture in pictures], batches.total)])


class TrainingImages(torch.utils.data.Dataset):
    """Latents and prompts of the images. A batch is drawn anew at each access, from the seed, the epoch and the image.

    So noise, timestep, prompt, crop and flip of an image depend neither on what was drawn before (resuming is exact and
    previews disturb nothing) nor on which process asks.
    """

    def __init__(self, latents: Latents, prompts: Prompts, embeds: PromptEmbeds, models: StableDiffusion, config):
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
        rows = [self.draw(batch.epoch, index) for index in batch.indices]
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
        return conditions(self.embeds(batch["prompts"]), batch["time_ids"])

    def plain_conditions(self, index: int, count: int) -> dict:
        """Those of `count` times an image, not mirrored, with the prompt that it always gets."""
        embeds = self.embeds([self.prompts.draw(0, index)])
        sizes = self.latents.crops[index][0][0].time_ids() if self.is_xl else None
        return conditions(embeds * count, None if sizes is None else sizes.expand(count, -1))

    def draw(self, epoch: int, index: int):
        """(latents, noise, timestep, loss weights, prompt, SDXL's sizes) of an image in an epoch."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "item", epoch, self.latents.ids[index]))
        _, crops, flips = self.latents.rows.shape
        crop = int(torch.randint(crops, (), generator=generator)) if crops > 1 else 0
        flip = int(torch.randint(flips, (), generator=generator)) if flips > 1 else 0
        latents = self.latents.draw(index, crop, flip, generator)
        noise, timestep = draw_noise_and_timestep(latents.shape, self.num_train_timesteps, generator)
        if self.noise_offset:
            noise = offset_noise(noise, self.noise_offset, generator)
        sizes = self.latents.crops[index][crop][flip].time_ids() if self.is_xl else None
        return latents, noise, timestep, self.weights(index, crop, flip), self.prompts.draw(epoch, index), sizes

    def weights(self, index: int, crop=0, flip=0) -> torch.Tensor:
        """How much each cell of a crop counts, (1, height or 1, width or 1)."""
        return self.latents.alpha_weights(index, crop, flip) if self.alpha_weight else torch.ones(1, 1, 1)


def build_loader(accelerator, dataset: TrainingImages, batches: EpochBatches):
    """A loader that brings batches to the device. It shares nothing out: `batches` has done so, without mixing sizes."""
    pin_memory = accelerator.device.type == "cuda"
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=lambda batch: batch, pin_memory=pin_memory)
    return prepare_data_loader(
        loader, accelerator.device, num_processes=1, process_index=0, put_on_device=True, non_blocking=pin_memory
    )


def encode_dataset(
    models: StableDiffusion, source: Source, pictures: list[Picture], config, vae_dtype
) -> TrainingImages:
    """Encode what has not been encoded yet; a second run reads it from the cache.

    The VAE has the device to itself first, then the text encoders.
    """
    models.on_device(models.vae)
    latents = encode_pictures(models, source, pictures, config, vae_dtype)
    prompts = Prompts(
        ids=latents.ids,
        captions=[source.captions[picture.row] for picture in pictures],
        templates=config.templates,
        name=config.name,
        seed=config.seed,
        shuffle_tags=config.shuffle_tags,
        keep_tags=config.keep_tags,
        tag_dropout=config.tag_dropout,
        caption_dropout=config.caption_dropout,
        variants=config.caption_variants,
    )
    if config.max_token_chunks and is_first():
        images = {
            prompt: source.name(picture.row)
            for index, picture in enumerate(pictures)
            for prompt in prompts.undropped(index)
        }
        if note := cut_note(models, list(images), images):
            print(note)
    models.on_device(*models.text_encoders)
    embeds = open_embeds(models, prompts.every_prompt(), config.cache_dir)
    return TrainingImages(latents, prompts, embeds, models, config)
