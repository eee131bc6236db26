"""Encode folders of images as the training does, and by hand."""

import struct
import zlib

import numpy as np
import torch
from PIL import Image

from hypernet.cli.option_checks import check_options
from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import Batch
from hypernet.data.dataset import encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import open_image_source
from hypernet.data.processes import ALONE


def configure(folder, cache_dir, **options):
    """Return the options of a training on a folder, at 64 pixels with seed 3 unless they say otherwise."""
    options = {"resolution": "64", "seed": 3, "output_dir": "out/me", **options}
    options |= {"train_data_dir": str(folder), "cache_dir": str(cache_dir)}
    return check_options(TrainingConfig(pretrained_model_name_or_path="x", **options))


def encode(models, config, vae_dtype=torch.float32, processes=ALONE):
    """Return the dataset of a training and the records of its images."""
    source = open_image_source(config)
    records, _ = index_images(source, config, 8, processes)
    return encode_dataset(models, source, records, config, vae_dtype, processes), records


def one(dataset, epoch, index):
    """Return a batch of one image."""
    return dataset.__getitems__(Batch(epoch, 0, [index], [1.0]))


def encode_by_hand(models, image):
    """Return the VAE's distribution for a PIL image."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous() / 127.5 - 1
    with torch.no_grad():
        return models.vae.encode(pixels).latent_dist


def records_of_sizes(sizes):
    """Return records of made-up images that are trained at these sizes."""
    return [ImageRecord(row, f"{row:x}", *size, False, size) for row, size in enumerate(sizes)]


def write_image(path, color="red"):
    """Write an image of 8 x 8 pixels, and its folder."""
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (8, 8), color).save(path)


def png_without_pixels(width, height):
    """Return a PNG file that claims a size and ends before its pixels."""
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", b""), (b"IEND", b"")
    packed = (struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)
