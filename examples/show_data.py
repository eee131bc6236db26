#!/usr/bin/env python
"""Show the training images as the trainer will see them, before a long run.

    python examples/show_data.py --config examples/configs/quickstart.yaml
    python examples/show_data.py --sheet my_data.png --pretrained_model_name_or_path MODEL --train_data_dir my_images

Takes all options of train_hypernetwork.py. Writes a sheet of the cropped images, decoded from their latents,
each with its size and a sampled prompt, and a second sheet of the images that look suspicious. Everything encoded here
is cached for the training.
"""

import argparse
import dataclasses
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import ScriptParser, check_output_file, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import torch
from accelerate import Accelerator
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageDraw
from tqdm.auto import tqdm

from examples.preparation.remedies import MIN_KEPT_SHARE, percent, training_remedy
from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import check_cache_folder
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.buckets import kept_share
from hypernet.data.caption_remarks import doubtful_captions
from hypernet.data.dataset import TrainingDataset, describe_data, encode_dataset
from hypernet.data.folder_repeats import folder_paths
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_io import on_background, read_image
from hypernet.data.image_source import ImageSource, open_image_source
from hypernet.data.latents import STD_RANGE, vae_notes
from hypernet.data.near_duplicates import find_near_duplicates, thumbnail
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion, vae_dtype, weight_dtype
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.text_encoding import truncated_prompts
from hypernet.training.model_checks import check_resolution, choose_widths
from hypernet.utils.errors import UserError, counted
from hypernet.utils.image_grid import load_font

CELL, COLUMNS, FONT_SIZE, GAP = 240, 6, 13, 12  # CELL, FONT_SIZE and GAP in pixels; CELL is an image's longer side
LINE = FONT_SIZE + 4  # pixels from one line of text to the next
LINE_LETTERS, MAX_LINES = 36, 6  # of the text below an image

# What looks suspicious
MAX_ENLARGED = 1.5  # times; more is visible
MIN_CHANNEL_STD = 0.25  # of scaled latents within their channels; less is a flat image
SAME_THRESHOLD = 0.02  # difference between near duplicates


@dataclasses.dataclass
class Data:
    """Everything about the images that the trainer has before its first step."""

    source: ImageSource
    records: list[ImageRecord]
    dataset: TrainingDataset
    models: StableDiffusion
    has_notes: bool  # whether likely mistakes were printed
    rounds: int = 1  # per epoch

    def name(self, index: int) -> str:
        """Return the path of an image, or its row in the dataset."""
        return self.source.name(self.records[index].row)

    def label(self, index: int) -> str:
        """Return the file name of an image, or its row in the dataset."""
        return self.source.label(self.records[index].row)


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, TrainingConfig]:
    """Parse this script's own options, and those of train_hypernetwork.py.

    Raises:
        UserError: for options that cannot work.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--sheet", type=Path, default=Path("output/data.png"), help="PNG to write; default: %(default)s"
    )
    parser.add_argument("--max_images", type=int, default=96, help="maximum per sheet; default: %(default)s")
    parser.add_argument(
        "--epoch", type=int, default=0, help="epoch whose crops, flips and prompts are shown; default: 0"
    )
    own, training_options = parser.parse_known_args(arguments)
    if own.max_images < 1:
        raise UserError(f"--max_images {own.max_images}: it must be 1 or more")
    if own.epoch < 0:
        raise UserError(f"--epoch {own.epoch}: it must be 0 or more")
    config = parse_config(training_options)
    check_sheet(own.sheet, config)
    return own, config


def check_sheet(sheet: Path, config: TrainingConfig) -> None:
    """Raise UserError if the sheet cannot be written, or would become a training image."""
    if sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UserError(f"--sheet {sheet}: it must end in .png or .jpg")
    if any(sheet.resolve().is_relative_to(folder.resolve()) for folder in folder_paths(config.train_data_dir)):
        raise UserError(f"--sheet {sheet}: it lies in --train_data_dir; name a file outside")
    check_output_file(sheet, f"--sheet {sheet}")


def open_data(config: TrainingConfig) -> Data:
    """Check, index, load and encode, in the same order as train_hypernetwork.py."""
    base = identify_base_model(ModelSource.from_config(config))
    choose_widths(config, base)
    check_resolution(config, base)
    check_cache_folder(config.cache_dir)
    source = open_image_source(config)
    accelerator = Accelerator(mixed_precision=config.mixed_precision)
    dtype, device = weight_dtype(accelerator.mixed_precision), accelerator.device
    records, problems = index_images(source, config, base.image_multiple)
    batches = EpochBatchSampler(records, config.train_batch_size, config.seed, rounds=config.repeats)
    description = describe_data(source, records, problems, batches, config)
    print(description)
    print(f"Loading {base.describe()}")
    models = load_stable_diffusion(base, dtype, device, keep_on_cpu=True)
    dataset = encode_dataset(models, source, records, config, vae_dtype(dtype, device))
    notes = vae_notes(base, dataset.latents)
    print(*notes, sep="\n", end="\n" if notes else "")
    has_notes = bool(notes) or "note: " in {line[:6] for line in description.splitlines()}
    return Data(source, records, dataset, models, has_notes, config.repeats)


# --- What looks suspicious


def find_suspicious(data: Data, config: TrainingConfig) -> dict[int, list[str]]:
    """Return the images that look suspicious, as index -> reasons."""
    remarks: dict[int, list[str]] = {}

    def remark(index: int, text: str) -> None:
        remarks.setdefault(index, []).append(text)

    for index, first in near_duplicates(data):
        remark(index, f"the same image as {data.label(first)}, or nearly so")
    for index, record in enumerate(data.records):
        scale = max(size / side for size, side in zip(record.size, (record.width, record.height)))
        kept = kept_share(record.width, record.height, record.size)
        if scale > MAX_ENLARGED:
            remark(index, f"only {record.width}x{record.height}, enlarged {scale:.1f} times")
        if kept < MIN_KEPT_SHARE and config.crop != "none":
            remedy = training_remedy(record.width, record.height, config)
            remark(index, f"{record.width}x{record.height}: only {percent(kept)} of it is kept; {remedy}")
        if "" in data.dataset.prompts.full_prompts(index):
            remark(index, "an empty prompt")
    if any("[filewords]" in template for template in data.dataset.prompts.templates):
        written = [not data.source.is_folder or data.source.captioned[record.row] for record in data.records]
        captions = [texts[0] for texts in data.dataset.prompts.captions]
        for index, text in doubtful_captions(captions, written):
            remark(index, text)
    for index, lost, tokens in truncated_images(data):
        remark(index, f"a prompt of {tokens} tokens; --max_token_chunks cuts off {lost}")
    for index in range(len(data.records)):
        latents = data.dataset.latents.sample(index, 0, 0, torch.Generator().manual_seed(0))
        if not STD_RANGE[0] <= latents.std() <= STD_RANGE[1]:
            remark(index, f"latents of standard deviation {latents.std():.2f}, not about 1; is it the right VAE?")
        elif latents.std((1, 2)).mean() < MIN_CHANNEL_STD:
            remark(index, "a flat image: it shows next to nothing")
    return dict(sorted(remarks.items()))


def near_duplicates(data: Data) -> Iterator[tuple[int, int]]:
    """Yield (index, index of an earlier image) for images that are the same or nearly so."""
    thumbnails = []
    for record in tqdm(data.records, desc="Comparing images"):
        image = read_image(data.source.read(record.row))
        thumbnails.append(thumbnail(on_background(image, "white")))
    aspects = [record.width / record.height for record in data.records]
    return find_near_duplicates(thumbnails, aspects, SAME_THRESHOLD)


def truncated_images(data: Data) -> Iterator[tuple[int, int, int]]:
    """Yield (index, tokens cut off, tokens in all) for images that may get a truncated prompt."""
    for index in range(len(data.records) if data.models.base.source.max_token_chunks else 0):
        cut = truncated_prompts(data.models, data.dataset.prompts.full_prompts(index))
        if cut:
            yield index, *max(each[1:] for each in cut)


# --- Sheets


@dataclasses.dataclass
class Cell:
    """An image scaled to the size of a cell, with the label and text below it."""

    image: Image.Image
    label: str
    text: str


@torch.no_grad()
def decode(data: Data, latents: torch.Tensor) -> Image.Image:
    """Decode scaled latents, (channels, height, width)."""
    vae = data.models.vae
    data.models.on_device(vae)
    pixels = vae.decode(latents[None].to(vae.device) / vae.config.scaling_factor).sample
    return VaeImageProcessor().postprocess(pixels.float().cpu(), output_type="pil")[0]


def draw_sheet(data: Data, indices: Iterable[int], epoch: int, remarks: dict[int, list[str]]) -> Image.Image:
    """Return a sheet of images with name, size and prompt below each. Remarks, if any, replace the prompts, in red."""
    cells = [build_cell(data, index, epoch, remarks) for index in tqdm(list(indices), desc="Drawing")]
    columns = min(COLUMNS, len(cells))
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.image.height for cell in row) for row in rows]
    text_heights = [LINE * (2 + max(cell.text.count("\n") for cell in row)) for row in rows]
    size = columns * (CELL + GAP) + GAP, sum(heights) + sum(text_heights) + GAP * (len(rows) + 1)
    sheet = Image.new("RGB", size, "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    color = "firebrick" if remarks else "black"
    for row, height, text_height in zip(rows, heights, text_heights):
        for column, cell in enumerate(row):
            left = GAP + column * (CELL + GAP)
            sheet.paste(cell.image, (left + (CELL - cell.image.width) // 2, top + height - cell.image.height))
            draw.text((left, top + height + 4), cell.label, fill="gray", font=load_font(FONT_SIZE, cell.label))
            place, font = (left, top + height + 4 + LINE), load_font(FONT_SIZE, cell.text)
            draw.multiline_text(place, cell.text, fill=color, font=font, spacing=2)
        top += height + text_height + GAP
    return sheet


def build_cell(data: Data, index: int, epoch: int, remarks: dict[int, list[str]]) -> Cell:
    """Decode the image as sampled when it is first seen in this epoch, and wrap the text below it."""
    sample = data.dataset.sample(epoch * data.rounds * data.records[index].repeats, index)
    image = decode(data, sample.latents)
    name, size = data.label(index), f"  {image.width}x{image.height}"
    font = load_font(FONT_SIZE, name)
    while font.getlength(name + size) > CELL:
        name = name[:-5] + "..."
    prompt = f'"{sample.prompt}"' if sample.prompt else "(empty prompt)"
    parts = remarks[index] if remarks else prompt.split("\n")
    lines = [line for part in parts for line in textwrap.wrap(part, LINE_LETTERS)]
    text = "\n".join(lines[:MAX_LINES] + ["..."] * (len(lines) > MAX_LINES))
    width, height = (max(1, round(side * CELL / max(image.size))) for side in image.size)
    return Cell(image.resize((width, height), Image.Resampling.LANCZOS), name + size, text)


def main(arguments: Sequence[str] | None = None) -> None:
    own, config = parse_arguments(arguments)
    data = open_data(config)
    shown = range(min(own.max_images, len(data.records)))
    draw_sheet(data, shown, own.epoch, {}).save(own.sheet)
    count = f"{len(shown)} of {counted(len(data.records), 'image')}"
    print(f"{own.sheet}: {count} as the trainer sees them in epoch {own.epoch}")

    warning_sheet = own.sheet.with_name(f"{own.sheet.stem}_warnings{own.sheet.suffix}")
    remarks = find_suspicious(data, config)
    for index, texts in remarks.items():
        print(f"look at {data.name(index)}: {'; '.join(texts)}")
    if remarks:
        draw_sheet(data, list(remarks)[: own.max_images], own.epoch, remarks).save(warning_sheet)
        print(f"{warning_sheet}: {counted(len(remarks), 'image')} to look at")
    else:
        warning_sheet.unlink(missing_ok=True)
        print("no image looks suspicious, but see the notes above" if data.has_notes else "nothing suspicious")


if __name__ == "__main__":
    run_script(main)
