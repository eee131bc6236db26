"""Images become latents: each crop and orientation is encoded once and cached on the disk."""

import collections
import dataclasses
import itertools
import random

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from hypernet.data.arrow_cache import CACHE_VERSION, FLOATS, RowCache, cache_folder
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_io import (
    alpha_cells,
    alpha_weights,
    crop_box,
    map_in_threads,
    on_background,
    read_image,
    to_pixels,
)
from hypernet.data.image_source import ImageSource
from hypernet.stable_diffusion.conditioning import time_ids
from hypernet.stable_diffusion.model import StableDiffusion, encode_images
from hypernet.stable_diffusion.model_hash import vae_hash
from hypernet.stable_diffusion.vae import vae_error
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed

STD_RANGE = (0.4, 2.0)  # of an image's scaled latents, which a model expects to deviate by about 1
MIN_IMAGES = 64  # looked at

# As many as the VAE gets in one batch: what a small card can hold. On a CPU larger batches are no faster.
PIXELS_AT_ONCE = {"cpu": 512 * 512, "other": 4 * 512 * 512}


@dataclasses.dataclass(slots=True)
class Crop:
    """What is encoded: a part of a picture, at a size, mirrored or not."""

    picture: ImageRecord
    box: tuple[float, ...]
    flipped: bool

    def key(self, alpha_background: str) -> str:
        box = ",".join(f"{side:.3f}" for side in self.box)
        behind = alpha_background if self.picture.has_alpha else ""
        return f"{self.picture.sha256}/{self.picture.size}/{box}/{'flipped' if self.flipped else ''}/{behind}"

    def time_ids(self) -> torch.Tensor:
        """SDXL's sizes: of the picture, of what was cut off at its top and left once it was scaled, of the crop."""
        picture, (left, top, right, bottom) = self.picture, self.box
        width, height = picture.size
        cut_left = picture.width - right if self.flipped else left
        corner = round(top * height / (bottom - top)), round(cut_left * width / (right - left))
        return time_ids((picture.height, picture.width), corner, (height, width))


def crops_of(picture: ImageRecord, config) -> list[list[Crop]]:
    """Its crops, each in every orientation that training uses: [crop][orientation].

    The places of random crops follow from the image's bytes, so that runs with other seeds find them encoded.
    """
    centerings = [(0.5, 0.5)]
    if config.crop == "random":
        rng = random.Random(derive_seed("crop", picture.sha256))
        centerings = [(rng.random(), rng.random()) for _ in range(config.crop_variants or 4)]
    flips = (False, True) if config.random_flip else (False,)
    return [[Crop(picture, _box(picture, config, centering), flip) for flip in flips] for centering in centerings]


def _box(picture, config, centering):
    (width, height), sides = picture.size, (picture.width, picture.height)
    if config.crop == "none":
        return 0, 0, *sides
    if config.varsize:  # nothing is resized
        left, top = (round((side - kept) * place) for side, kept, place in zip(sides, picture.size, centering))
        return left, top, left + width, top + height
    return crop_box(*sides, picture.size, centering)


class ImageLatents:
    """The latents of all pictures; `config.latent_sampling` says what is taken from the VAE's distribution.

    What is stored is the distribution, so that changing the sampling encodes nothing.
    """

    def __init__(self, cache: RowCache, rows: np.ndarray, crops, pictures, models: StableDiffusion, config):
        self.cache, self.rows, self.crops = cache, rows, crops  # rows and crops: (images, crops, orientations)
        self.ids = number_copies([picture.sha256 for picture in pictures])
        self.grids = [tuple(side // models.base.image_multiple for side in picture.size[::-1]) for picture in pictures]
        self.scaling_factor = models.vae.config.scaling_factor
        self.sampling, self.seed = config.latent_sampling, config.seed

    def __len__(self):
        return len(self.rows)

    def sample(self, index: int, crop: int, flip: int, generator: torch.Generator) -> torch.Tensor:
        """Scaled latents, (channels, height, width) float32, of one crop and orientation of an image.

        once: a sample that is always the same; deterministic: the mean; random: a sample from `generator`.
        """
        moments = torch.tensor(self.cache.read(self.rows[index, crop, flip], "moments"))
        moments = moments.view(-1, *self.grids[index])  # (means and log variances of the channels, height, width)
        if self.sampling == "deterministic":
            return moments.chunk(2)[0] * self.scaling_factor
        if self.sampling == "once":
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "latents", self.ids[index], crop, flip))
        return DiagonalGaussianDistribution(moments[None]).sample(generator)[0] * self.scaling_factor

    def alpha_weights(self, index: int, crop: int, flip: int) -> torch.Tensor:
        """Loss weights of mean 1 from the image's alpha, (1, height, width); ones without it."""
        alpha = self.cache.read(self.rows[index, crop, flip], "alpha")
        if alpha is None:
            return torch.ones(1, *self.grids[index])
        return torch.from_numpy(alpha_weights(alpha.reshape(1, *self.grids[index])))


def number_copies(hashes: list[str]) -> list[str]:
    """A name for each picture: the hash of its bytes, numbered from its second copy on, so that copies draw on their own."""
    seen, names = collections.Counter(), []
    for digest in hashes:
        names.append(f"{digest}-{seen[digest]}" if seen[digest] else digest)
        seen[digest] += 1
    return names


def encode_latents(models: StableDiffusion, source: ImageSource, pictures: list[ImageRecord], config, dtype) -> ImageLatents:
    """Encode every crop that has not been encoded yet with these VAE weights, with a progress bar.

    `dtype` is the precision of the VAE's products. If it overflows in half precision, float32 takes over and says so.

    Raises:
        UserError: if a picture cannot be read any more, or the VAE overflows even in float32.
    """
    vae_key = f"{vae_hash(models.vae)}-{str(dtype).removeprefix('torch.')}"
    folder = cache_folder(config.cache_dir) / f"latents-{CACHE_VERSION}-{vae_key}"
    cache = RowCache(folder, {"moments": FLOATS, "alpha": FLOATS})
    crops = [crops_of(picture, config) for picture in pictures]
    every = [crop for places in crops for orientations in places for crop in orientations]
    keys = [crop.key(config.alpha_background) for crop in every]

    def encode(items):
        # of one size one after the other, since only those share a batch
        items = sorted(items, key=lambda item: item[1].picture.size)
        return _encode(models, map_in_threads(lambda item: _load(source, config, models, *item), items), dtype)

    cache.fill(dict(zip(keys, every)), encode, "Encoding images", "crops")
    rows = cache.positions(keys).reshape(len(pictures), len(crops[0]), -1)
    return ImageLatents(cache, rows, crops, pictures, models, config)


def _load(source, config, models, key, crop):
    """The row of a crop as far as it is known without the VAE, and the pixels for the VAE."""
    try:
        image = read_image(source.read(crop.picture.row))
    except ValueError as error:
        raise UserError(f"{source.name(crop.picture.row)}: it could be read a moment ago, but now {error}") from None
    size = crop.picture.size
    alpha = alpha_cells(image, size, crop.box, models.base.image_multiple)
    pixels = to_pixels(on_background(image, config.alpha_background), size, crop.box)
    if crop.flipped:
        pixels, alpha = pixels[:, :, ::-1].copy(), None if alpha is None else alpha[:, ::-1]
    return {"key": key, "alpha": None if alpha is None else alpha.ravel()}, pixels


def _encode(models, loaded, dtype):
    """Rows with their moments, encoded in batches of one size and at most PIXELS_AT_ONCE."""
    limit = PIXELS_AT_ONCE["cpu" if models.vae.device.type == "cpu" else "other"]
    for (_, height, width), group in itertools.groupby(loaded, key=lambda item: item[1].shape):
        at_once = max(1, limit // (height * width))
        while batch := list(itertools.islice(group, at_once)):
            pixels = torch.from_numpy(np.stack([pixels for _, pixels in batch]))
            moments = encode_images(models, pixels, dtype)
            if not moments.isfinite().all() and dtype is not torch.float32:
                print(f"The VAE overflows in {str(dtype).removeprefix('torch.')}; images are encoded in float32")
                dtype = torch.float32
                moments = encode_images(models, pixels, dtype)
            if not moments.isfinite().all():
                raise vae_error(models.base.source, "it gives NaN even in float32; its weights are damaged")
            for (row, _), values in zip(batch, moments.cpu().numpy()):
                yield {**row, "moments": values.ravel()}


def vae_notes(base, latents) -> list[str]:
    """Lines on a VAE that does not look like the model's: another scale, latents that do not deviate by about 1."""
    notes, path = [], base.source.pretrained_vae_model_name_or_path
    here, there = (vae.get("scaling_factor", 0.18215) for vae in (base.vae, base.own_vae))
    if here != there:
        hint = "is it a VAE of another kind of model?"
        notes.append(
            f"note: --pretrained_vae_model_name_or_path {path}: its scale is {here}, the model's {there}; {hint}"
        )
    some = range(0, len(latents), max(1, len(latents) // MIN_IMAGES))
    generator = torch.Generator().manual_seed(0)
    deviation = torch.stack([latents.sample(index, 0, 0, generator).std() for index in some]).median().item()
    if not STD_RANGE[0] <= deviation <= STD_RANGE[1]:
        which = f"--pretrained_vae_model_name_or_path {path}" if path else "the model's VAE"
        notes.append(f"note: {which}: scaled latents deviate by {deviation:.2f}, not by about 1; is it the right VAE?")
    return notes
