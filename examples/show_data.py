#!/usr/bin/env python
"""See what the trainer will see, before a night of training.

    python examples/show_data.py --config examples/configs/quickstart.yaml
    python examples/show_data.py --sheet my_data.png --pretrained_model_name_or_path MODEL --train_data_dir my_pictures

Takes all options of train_hypernetwork.py, and writes a sheet of the images as they are cropped, decoded again from their
latents, each with its size and a prompt that is drawn for it. What looks suspicious comes on a second sheet. Everything
that is encoded here is in the cache when the training starts.
"""

import dataclasses
import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from hypernet.cli.script import ScriptParser, run_script
from hypernet.cli.training_options import parse_config
from hypernet.data.arrow_cache import check_cache_folder
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.buckets import kept_share
from hypernet.data.dataset import TrainingDataset, describe_data, encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_io import on_background, read_image
from hypernet.data.image_source import ImageSource, open_image_source
from hypernet.data.latents import STD_RANGE, vae_notes
from hypernet.data.near_duplicates import find_near_duplicates, thumbnail
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion, vae_dtype, weight_dtype
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.text_encoding import truncated_prompts
from hypernet.training.setup import check_resolution, choose_widths
from hypernet.utils.atomic_files import check_writable
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import load_font

CELL, COLUMNS, FONT = 240, 6, 13  # pixels: a picture's longer side, and the height of a letter
LETTERS = 36  # of a line below a picture
ENLARGED = 1.5  # more than that shows
KEPT = 0.6  # less than that of a picture left after cropping is worth a look
FLAT = 0.25  # deviation of an image's scaled latents within their channels


@dataclasses.dataclass
class Data:
    """What the trainer has before its first step."""

    source: ImageSource
    pictures: list[ImageRecord]
    dataset: TrainingDataset
    models: StableDiffusion

    def name(self, index: int) -> str:
        return self.source.name(self.pictures[index].row)

    def label(self, index: int) -> str:
        return self.source.label(self.pictures[index].row)


def parse_arguments(arguments=None):
    """This script's own options, and the training's."""
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--sheet", type=Path, default=Path("output/data.png"), help="PNG to write; default: %(default)s"
    )
    parser.add_argument("--max_images", type=int, default=96, help="at most so many on a sheet; default: %(default)s")
    parser.add_argument("--epoch", type=int, default=0, help="whose crops, flips and prompts are shown")
    own, training_options = parser.parse_known_args(arguments)
    if own.max_images < 1 or own.epoch < 0:
        raise UserError(f"--max_images {own.max_images} --epoch {own.epoch}: they must be at least 1 and 0")
    config = parse_config(training_options)
    check_sheet(own.sheet, config)
    return own, config


def check_sheet(sheet: Path, config):
    """Raises: UserError if the sheet cannot be written, or would become a training image."""
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--sheet {sheet}: let it end in .png or .jpg")
    if config.train_data_dir and sheet.resolve().is_relative_to(Path(config.train_data_dir).resolve()):
        raise UserError(f"--sheet {sheet}: it lies in --train_data_dir; name a file outside")
    try:
        check_writable(sheet.parent)
    except OSError as error:
        raise UserError(f"--sheet {sheet}: it cannot be written ({error.strerror})") from None


def open_data(config) -> Data:
    """Check, look, tell, load and encode, in the order of the training."""
    base = identify_base_model(ModelSource.from_config(config))
    choose_widths(config, base)
    multiple = check_resolution(config, base)
    check_cache_folder(config.cache_dir)
    source = open_image_source(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    dtype, device = weight_dtype(accelerator.mixed_precision), accelerator.device
    pictures, problems = index_images(source, config, multiple)
    batches = EpochBatchSampler(pictures, config.train_batch_size, config.seed)
    print(describe_data(source, pictures, problems, batches, config))
    print(f"Loading {base.describe()}")
    models = load_stable_diffusion(base, dtype, device, waits=True)
    dataset = encode_dataset(models, source, pictures, config, vae_dtype(dtype, device))
    for note in vae_notes(base, dataset.latents):
        print(note)
    return Data(source, pictures, dataset, models)


# --- What looks suspicious


def find_suspicious(data: Data, config, threshold=0.02) -> dict[int, list[str]]:
    """{index of a picture: why it should be looked at}."""
    remarks = {}

    def remark(index, text):
        remarks.setdefault(index, []).append(text)

    for index, first in same_pictures(data, threshold):
        remark(index, f"the same picture as {data.label(first)}")
    for index, picture in enumerate(data.pictures):
        scale = max(size / side for size, side in zip(picture.size, (picture.width, picture.height)))
        kept = kept_share(picture.width, picture.height, picture.size)
        if scale > ENLARGED:
            remark(index, f"only {picture.width}x{picture.height}, enlarged {scale:.1f} times")
        if kept < KEPT and config.crop != "none":
            remark(index, f"{picture.width}x{picture.height}: only {kept:.0%} of it is kept")
        if "" in data.dataset.prompts.undropped(index):
            remark(index, "an empty prompt")
    for index, cut, tokens in long_prompts(data):
        remark(index, f"a prompt of {tokens} tokens; --max_token_chunks cuts the last {cut}")
    for index in range(len(data.pictures)):
        latents = data.dataset.latents.sample(index, 0, 0, torch.Generator().manual_seed(0))
        if not STD_RANGE[0] <= latents.std() <= STD_RANGE[1]:
            remark(index, f"latents of deviation {latents.std():.2f}, not about 1: is it the right VAE?")
        elif latents.std((1, 2)).mean() < FLAT:
            remark(index, "a flat picture, there is next to nothing on it")
    return dict(sorted(remarks.items()))


def same_pictures(data: Data, threshold):
    """(index, index of an earlier one) of pictures that are the same, or nearly so."""
    read = (
        on_background(read_image(data.source.read(picture.row)), "white")
        for picture in tqdm(data.pictures, desc="Comparing images")
    )
    return find_near_duplicates([thumbnail(image) for image in read], [p.width / p.height for p in data.pictures], threshold)


def long_prompts(data: Data):
    """(index, tokens that are cut off, all its tokens) of pictures that can get a prompt that is cut."""
    for index in range(len(data.pictures) if data.models.base.source.max_token_chunks else 0):
        cut = truncated_prompts(data.models, data.dataset.prompts.undropped(index))
        if cut:
            yield index, *max(each[1:] for each in cut)


# --- Sheets


@torch.no_grad()
def decode(data: Data, latents: torch.Tensor) -> Image.Image:
    vae = data.models.vae
    data.models.on_device(vae)
    pixels = vae.decode(latents[None].to(vae.device) / vae.config.scaling_factor).sample
    return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")[0]


def draw_sheet(data: Data, indices, epoch: int, remarks: dict[int, list[str]]) -> Image.Image:
    """Pictures with name, size and prompt below, or with remarks in red instead of the prompt."""
    indices, gap, line = list(indices), 12, FONT + 4
    columns = min(COLUMNS, len(indices))
    cells = [draw_cell(data, index, epoch, remarks) for index in tqdm(indices, desc="Drawing")]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    pictures = [max(image.height for image, *_ in row) for row in rows]
    texts = [line * (2 + max(text.count("\n") for *_, text in row)) for row in rows]
    size = columns * (CELL + gap) + gap, sum(pictures) + sum(texts) + gap * (len(rows) + 1)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), gap
    for row, height, below in zip(rows, pictures, texts):
        for column, (image, label, text) in enumerate(row):
            left = gap + column * (CELL + gap)
            sheet.paste(image, (left + (CELL - image.width) // 2, top + height - image.height))
            draw.text((left, top + height + 4), label, fill="gray", font=load_font(FONT, label))
            color, font = "firebrick" if remarks else "black", load_font(FONT, text)
            draw.multiline_text((left, top + height + 4 + line), text, fill=color, font=font, spacing=2)
        top += height + below + gap
    return sheet


def draw_cell(data: Data, index, epoch, remarks):
    """(picture in the size of a cell, its label, the text below it, wrapped)."""
    latents, *_, prompt, _ = data.dataset.sample(epoch, index)
    image = decode(data, latents)
    sides = [max(1, round(side * CELL / max(image.size))) for side in image.size]
    name, size = data.label(index), f"  {image.width}x{image.height}"
    font = load_font(FONT, name)
    while font.getlength(name + size) > CELL:
        name = name[:-5] + "..."
    text = "\n".join(remarks[index]) if remarks else f'"{prompt}"' if prompt else "(empty prompt)"
    lines = [wrapped for part in text.split("\n") for wrapped in textwrap.wrap(part, LETTERS)]
    text = "\n".join(lines[:6] + ["..."] * (len(lines) > 6))
    return image.resize(sides, Image.Resampling.LANCZOS), name + size, text


def main(arguments=None):
    own, config = parse_arguments(arguments)
    data = open_data(config)
    shown = range(min(own.max_images, len(data.pictures)))
    draw_sheet(data, shown, own.epoch, {}).save(own.sheet)
    count = f"the first {len(shown)} of {len(data.pictures)} images"
    print(f"{own.sheet}: {count} as the trainer sees them in epoch {own.epoch}")

    warnings = own.sheet.with_name(f"{own.sheet.stem}_warnings{own.sheet.suffix}")
    remarks = find_suspicious(data, config)
    for index, texts in remarks.items():
        print(f"look at {data.name(index)}: {'; '.join(texts)}")
    if remarks:
        draw_sheet(data, list(remarks)[: own.max_images], own.epoch, remarks).save(warnings)
        print(f"{warnings}: {len(remarks)} images to look at")
    else:
        warnings.unlink(missing_ok=True)
        print("nothing suspicious")


if __name__ == "__main__":
    run_script(main)
