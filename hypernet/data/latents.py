"""Encode images into latents, each crop and orientation once, and cache them on disk."""

import collections
import dataclasses
import functools
import itertools
import random
from collections.abc import Iterator

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, Pairs, Row, RowCache, cache_folder, check_space
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_io import (
    Box,
    alpha_cells,
    alpha_weights,
    crop_box,
    map_in_threads,
    on_background,
    read_image,
    to_pixels,
)
from hypernet.data.image_source import ImageSource
from hypernet.data.processes import ALONE, Processes
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.conditioning import time_ids
from hypernet.stable_diffusion.model import StableDiffusion, encode_images
from hypernet.stable_diffusion.model_hash import vae_hash
from hypernet.stable_diffusion.vae import vae_error
from hypernet.utils.errors import UserError, counted
from hypernet.utils.hashing import derive_seed

STD_RANGE = (0.4, 2.0)  # plausible standard deviation of scaled latents, which a model expects to be about 1
STD_IMAGES = 64  # measure at least this many images, if there are as many

# Pixels the VAE encodes at once: as many as fit a small GPU. On a CPU, larger batches are no faster.
PIXELS_AT_ONCE = {"cpu": 512 * 512, "other": 4 * 512 * 512}


@dataclasses.dataclass(slots=True)
class Crop:
    """What the VAE encodes: a part of an image, resized to the record's size, mirrored or not."""

    record: ImageRecord
    box: Box
    flipped: bool

    def key(self, alpha_background: str) -> str:
        """Return the cache key, made of everything that shapes the pixels."""
        box = ",".join(f"{side:.3f}" for side in self.box)
        background = alpha_background if self.record.has_alpha else ""
        return f"{self.record.sha256}/{self.record.size}/{box}/{'flipped' if self.flipped else ''}/{background}"

    def time_ids(self) -> torch.Tensor:
        """Return SDXL's size conditioning, (6,) float32: original size, top left corner of the crop, size of the crop.

        The corner is in pixels of the resized image as shown, mirrored or not (Podell et al. 2023, section 2.2).
        """
        record, (left, top, right, bottom) = self.record, self.box
        width, height = record.size
        cut_left = record.width - right if self.flipped else left
        corner = round(top * height / (bottom - top)), round(cut_left * width / (right - left))
        return time_ids((record.height, record.width), corner, (height, width))


def crops_of(record: ImageRecord, config: TrainingConfig) -> list[list[Crop]]:
    """Return the crops of an image, each in every orientation that training uses: [crop][orientation].

    Random crops depend only on the image's bytes, so that runs with other seeds find them in the cache.
    """
    centerings = [(0.5, 0.5)]
    if config.crop == "random":
        rng = random.Random(derive_seed("crop", record.sha256))
        centerings = [(rng.random(), rng.random()) for _ in range(config.crop_variants or 4)]
    flips = (False, True) if config.flip_probability else (False,)
    return [[Crop(record, _box(record, config, centering), flip) for flip in flips] for centering in centerings]


def _box(record: ImageRecord, config: TrainingConfig, centering: tuple[float, float]) -> Box:
    (width, height), sides = record.size, (record.width, record.height)
    if config.crop == "none":
        return 0, 0, *sides
    if config.varsize:  # nothing is resized
        left, top = (round((side - kept) * place) for side, kept, place in zip(sides, record.size, centering))
        return left, top, left + width, top + height
    return crop_box(*sides, record.size, centering)


class ImageLatents:
    """The latents of all images.

    The cache holds the VAE's whole distribution, so that no image is encoded again if `--latent_sampling` changes.

    Attributes:
        rows: positions in the cache, (images, crops, orientations).
        ids: a unique id per image.
        grids: (height, width) of the latents of each image.
    """

    def __init__(
        self,
        cache: RowCache,
        rows: np.ndarray,
        records: list[ImageRecord],
        models: StableDiffusion,
        config: TrainingConfig,
    ):
        self.cache, self.rows, self.records, self.config = cache, rows, records, config
        self.ids = unique_ids([record.sha256 for record in records])
        self.grids = [tuple(side // models.base.image_multiple for side in record.size[::-1]) for record in records]
        self.scaling_factor = models.vae.config.scaling_factor

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, crop: int, flip: int, generator: torch.Generator | None) -> torch.Tensor:
        """Return the scaled latents of one crop and orientation of an image, (channels, height, width) float32.

        The sampling "deterministic" gives the distribution's mean, "once" always the same sample, and "random" a sample
        from `generator`.
        """
        moments = torch.tensor(self.cache.read(self.rows[index, crop, flip], "moments"))
        moments = moments.view(-1, *self.grids[index])  # (2 * channels, height, width): means, then log variances
        if self.config.latent_sampling == "deterministic":
            return moments.chunk(2)[0] * self.scaling_factor
        if self.config.latent_sampling == "once":
            seed = derive_seed(self.config.seed, "latents", self.ids[index], crop, flip)
            generator = torch.Generator().manual_seed(seed)
        return DiagonalGaussianDistribution(moments[None]).sample(generator)[0] * self.scaling_factor

    def time_ids(self, index: int, crop: int = 0, flip: int = 0) -> torch.Tensor:
        """Return SDXL's size conditioning, as `Crop.time_ids` does."""
        return crops_of(self.records[index], self.config)[crop][flip].time_ids()

    def alpha_weights(self, index: int, crop: int, flip: int) -> torch.Tensor:
        """Return loss weights of mean 1 from the image's alpha, (1, height, width); ones for an opaque image."""
        alpha = self.cache.read(self.rows[index, crop, flip], "alpha")
        if alpha is None:
            return torch.ones(1, *self.grids[index])
        return torch.from_numpy(alpha_weights(alpha.reshape(1, *self.grids[index])))


def unique_ids(hashes: list[str]) -> list[str]:
    """Number the repetitions of a hash, so that copies of an image get their own noise and prompts."""
    seen: collections.Counter[str] = collections.Counter()
    ids = []
    for digest in hashes:
        ids.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return ids


def encode_latents(
    models: StableDiffusion,
    source: ImageSource,
    records: list[ImageRecord],
    config: TrainingConfig,
    dtype: torch.dtype,
    processes: Processes = ALONE,
) -> ImageLatents:
    """Encode the crops that are not in the cache of this VAE, with a progress bar.

    Args:
        dtype: autocast precision of the VAE. A batch in which half precision overflows is encoded in float32; this is
            printed.
        processes: those that share this work. Each calls this with the same images.

    Raises:
        UserError: if the cache has no room for them, an image can no longer be read, or the VAE gives NaN even in float32.
    """
    half = str(dtype).removeprefix("torch.")
    folder = cache_folder(config.cache_dir) / f"latents-{CACHE_VERSION}-{vae_hash(models.vae)}-{half}"
    cache = RowCache(folder, {"moments": FLOATS, "alpha": FLOATS}, processes)
    flat = [crop for record in records for orientations in crops_of(record, config) for crop in orientations]
    keys = [crop.key(config.alpha_background) for crop in flat]
    overflows: list[int] = []  # crops of each batch that has overflowed

    def load(item: tuple[str, Crop]) -> tuple[Row, np.ndarray]:
        return _load_crop(source, *item, config.alpha_background, models.base.image_multiple)

    def encode(items: Pairs) -> Iterator[Row]:
        batches = make_batches(items, models.vae.device)
        loaded = map_in_threads(load, itertools.chain(*batches))
        for batch in batches:
            rows, pixels = zip(*itertools.islice(loaded, len(batch)))
            moments = encode_images(models, torch.from_numpy(np.stack(pixels)), dtype)
            if dtype is not torch.float32 and not moments.isfinite().all():
                overflows.append(len(batch))
                moments = encode_images(models, torch.from_numpy(np.stack(pixels)))
            if not moments.isfinite().all():
                raise vae_error(models.base.source, "it gives NaN even in float32; its weights are damaged")
            for row, values in zip(rows, moments.cpu().numpy()):
                yield {**row, "moments": values.ravel()}

    def check(items: Pairs) -> None:
        check_space(folder, sum(latent_bytes(models.base, crop.record) for _, crop in items))

    wanted = dict(zip(keys, flat))
    batches = functools.partial(make_batches, device=models.vae.device)
    cache.fill(wanted, encode, "Encoding images", "crops", batches, check)
    if (count := sum(map(sum, processes.gather(overflows)))) and processes.index == 0:
        print(f"The VAE overflows in {half}; {counted(count, 'crop was', 'crops were')} encoded in float32")
    rows = cache.positions(keys).reshape(len(records), len(crops_of(records[0], config)), -1)
    return ImageLatents(cache, rows, records, models, config)


def make_batches(items: Pairs, device: torch.device) -> list[Pairs]:
    """Divide (key, crop) pairs into batches of one size and at most PIXELS_AT_ONCE pixels, the smallest sizes first."""
    limit, batches = PIXELS_AT_ONCE["cpu" if device.type == "cpu" else "other"], []
    items = sorted(items, key=lambda item: item[1].record.size)
    for (width, height), group in itertools.groupby(items, key=lambda item: item[1].record.size):
        while batch := list(itertools.islice(group, max(1, limit // (height * width)))):
            batches.append(batch)
    return batches


def latent_bytes(base: BaseModel, record: ImageRecord) -> int:
    """Return the size of a crop's row in the cache, without alpha: means and log variances in float32."""
    width, height = (side // base.image_multiple for side in record.size)
    return 2 * base.vae_config.get("latent_channels", 4) * width * height * 4


def _load_crop(source: ImageSource, key: str, crop: Crop, background: str, multiple: int) -> tuple[Row, np.ndarray]:
    """Return a crop's cache row, still without its moments, and its pixels for the VAE."""
    record = crop.record
    try:
        image = read_image(source.read(record.row))
    except ValueError as error:
        raise UserError(f"{source.name(record.row)}: it has changed since it was inspected: {error}") from None
    alpha = alpha_cells(image, record.size, crop.box, multiple)
    pixels = to_pixels(on_background(image, background), record.size, crop.box)
    if crop.flipped:
        pixels, alpha = pixels[:, :, ::-1].copy(), None if alpha is None else alpha[:, ::-1]
    return {"key": key, "alpha": None if alpha is None else alpha.ravel()}, pixels


def vae_notes(base: BaseModel, latents: ImageLatents) -> list[str]:
    """Return a line for each sign of a wrong VAE: another scaling factor, or latents far from unit variance."""
    notes, path = [], base.source.pretrained_vae_model_name_or_path
    here, own = (vae.get("scaling_factor", 0.18215) for vae in (base.vae_config, base.own_vae_config))
    if here != own:
        problem = f"its scaling factor is {here}, the model's {own}; is it for another kind of model?"
        notes.append(f"note: --pretrained_vae_model_name_or_path {path}: {problem}")
    some = range(0, len(latents), max(1, len(latents) // STD_IMAGES))
    generator = torch.Generator().manual_seed(0)
    std = torch.stack([latents.sample(index, 0, 0, generator).std() for index in some]).median().item()
    if not STD_RANGE[0] <= std <= STD_RANGE[1]:
        which = f"--pretrained_vae_model_name_or_path {path}" if path else "the model's VAE"
        notes.append(
            f"note: {which}: the standard deviation of scaled latents is {std:.2f}, not about 1; is it the right VAE?"
        )
    return notes
