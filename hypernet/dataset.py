"""A folder of images becomes batches: latents and prompt embeddings encoded once, cached as Arrow files."""

import hashlib
import os
from pathlib import Path

import datasets
import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from hypernet.captions import fill_template
from hypernet.errors import UserError
from hypernet.loss import draw_noise_and_timestep
from hypernet.models import StableDiffusion, encode_images, encode_prompts, weights_hash

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
ENCODE_BATCH_SIZE = 8
CACHE_VERSION = 1  # to be raised when the same inputs are encoded in another way
BROKEN_IMAGE = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def find_images(folder) -> list[Path]:
    """The image files below `folder`, sorted by name, but for hidden ones.

    Raises:
        UserError: if there is no such folder, no image in it, or one that is broken.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"--train_data_dir {folder}: {'it is a file' if folder.exists() else 'there is no such folder'}"
        )
    files = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    images = sorted(path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts))
    if not images:
        raise UserError(f"--train_data_dir {folder}: there is no image in it (PNG, JPEG, WebP, BMP, GIF or TIFF)")
    for path in images:
        try:
            with Image.open(path) as image:
                image.load()
        except BROKEN_IMAGE as error:
            raise _broken(path, error) from None
    return images


def _broken(path, error):
    return UserError(f"{path}: it cannot be read as an image ({error}); mend or remove it")


def load_image(path, resolution: int) -> np.ndarray:
    """The picture as a viewer shows it, (3, resolution, resolution) float32 in [-1, 1]: centre-cropped, then resized.

    Raises:
        UserError: if the file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = ImageOps.fit(image.convert("RGB"), (resolution, resolution), Image.Resampling.BICUBIC)
    except BROKEN_IMAGE as error:
        raise _broken(path, error) from None
    return np.asarray(image, np.float32).transpose(2, 0, 1) / 127.5 - 1


class EncodedImages(torch.utils.data.Dataset):
    """Latents and prompts of a folder. An item is drawn anew at each access, from the seed, epoch and index alone.

    So noise, timestep and prompt of an image depend neither on what was drawn before (resuming is exact and previews
    disturb nothing) nor on which process asks.
    """

    def __init__(self, latents: datasets.Dataset, prompts: datasets.Dataset, prompt_rows, num_train_timesteps, seed):
        self.latents, self.prompts, self.prompt_rows = latents, prompts, prompt_rows
        self.num_train_timesteps, self.seed = num_train_timesteps, seed

    def __len__(self):
        return len(self.latents)

    def __getitem__(self, epoch_and_index):
        """latents (4, h, w), prompt_embeds (tokens, width), noise like the latents, timestep ()."""
        epoch, index = epoch_and_index
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "item", epoch, index))
        rows = self.prompt_rows[index]  # one for each template
        row = rows[int(torch.randint(len(rows), (), generator=generator))]
        latents = torch.from_numpy(np.asarray(self.latents[index]["latents"]))
        noise, timestep = draw_noise_and_timestep(latents.shape, self.num_train_timesteps, generator)
        return {
            "latents": latents,
            "prompt_embeds": torch.from_numpy(np.asarray(self.prompts[row]["prompt_embeds"])),
            "noise": noise,
            "timesteps": timestep,
        }


def derive_seed(*parts) -> int:
    """A seed of its own for whatever `parts` name: the first 63 bits of sha256("part/part/...")."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class EpochBatches(torch.utils.data.Sampler):
    """Batches of (epoch, index): every image once per epoch in a new order, the left-overs in a smaller batch.

    (Shared out to several processes, Accelerate fills that last batch up with images from the epoch's first one.)
    Whoever iterates sets `epoch` first. (There is no set_epoch: Accelerate would call it with a count of its own.)
    """

    drop_last = False  # Accelerate reads this and batch_size when it shares batches out to several processes

    def __init__(self, length: int, batch_size: int, seed: int):
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def __len__(self):
        return -(-self.length // self.batch_size)

    def __iter__(self):
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        for start in range(0, self.length, self.batch_size):
            yield [(self.epoch, index) for index in order[start : start + self.batch_size]]


def encode_folder(models: StableDiffusion, images, captions, config) -> EncodedImages:
    """Encode the images and every prompt they can get, each once, with a progress bar; a second run reads the cache.

    The caches are keyed by all that shapes them: the images' bytes, the resolution and the VAE's weights and config; the
    prompts, the tokenizer's vocabulary and the text encoder's weights and config.
    """
    prompts = [[fill_template(template, caption, config.name) for template in config.templates] for caption in captions]
    unique = sorted({prompt for choices in prompts for prompt in choices})
    rows = {prompt: row for row, prompt in enumerate(unique)}
    image_hashes = [hashlib.sha256(path.read_bytes()).hexdigest() for path in images]

    def encode_image_batch(batch):
        pixels = np.stack([load_image(path, config.resolution) for path in batch["path"]])
        return {"latents": list(encode_images(models, torch.from_numpy(pixels)).cpu().numpy())}

    def encode_prompt_batch(batch):
        return {"prompt_embeds": list(encode_prompts(models, batch["prompt"]).cpu().numpy())}

    side = config.resolution // 2 ** (len(models.vae.config.block_out_channels) - 1)
    latents = _encode_once(
        {"path": [str(path) for path in images]},
        encode_image_batch,
        "latents",
        datasets.Array3D((models.vae.config.latent_channels, side, side), "float32"),
        key=[image_hashes, config.resolution, weights_hash(models.vae), dict(models.vae.config)],
        cache_dir=config.cache_dir,
        description="Encoding images",
    )
    text_config, vocabulary = models.text_encoder.config, sorted(models.tokenizer.get_vocab().items())
    embeds = _encode_once(
        {"prompt": unique},
        encode_prompt_batch,
        "prompt_embeds",
        datasets.Array2D((models.tokenizer.model_max_length, text_config.hidden_size), "float32"),
        key=[unique, vocabulary, text_config.to_dict(), weights_hash(models.text_encoder)],
        cache_dir=config.cache_dir,
        description="Encoding prompts",
    )
    prompt_rows = [[rows[prompt] for prompt in choices] for choices in prompts]
    return EncodedImages(latents, embeds, prompt_rows, models.scheduler.config.num_train_timesteps, config.seed)


def _encode_once(columns, encode, column, feature, key, cache_dir, description):
    """`encode` applied to the columns in batches, from the cache file named by the hash of `key` if there is one."""
    fingerprint = hashlib.sha256(repr([CACHE_VERSION, key]).encode()).hexdigest()[:32]
    folder = Path(cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "hypernet"))
    folder.mkdir(parents=True, exist_ok=True)
    encoded = datasets.Dataset.from_dict(columns).map(
        encode,
        batched=True,
        batch_size=ENCODE_BATCH_SIZE,
        remove_columns=list(columns),
        features=datasets.Features({column: feature}),
        cache_file_name=str(folder / f"{column}-{fingerprint}.arrow"),
        new_fingerprint=fingerprint,
        desc=description,
    )
    return encoded.with_format("numpy")
