"""Damaged images, captions and metadata, and how scripts open them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from examples.benchmarks.damage import mutations
from examples.benchmarks.damage.samples import MODEL
from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.data.dataset import describe_data, encode_dataset
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.generation.infotext import parse_infotext, read_png_infotext
from hypernet.generation.tag_syntax import split_prompt
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import StableDiffusion, load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource

_models: list[StableDiffusion] = []  # loaded once in a process


def make_metadata(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    copy_images(samples, folder)
    path = folder / "images" / rng.choice(["metadata.jsonl", "metadata.jsonl", "more/metadata.csv"])
    if path.suffix == ".csv" or rng.random() < 0.3:
        content = path.read_text()
        mutations.damage_file(rng, path, lambda rng, _: mutations.damage_text(rng, content))
        return
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [mutations.damage_json(rng, json.dumps(row).encode()) for row in rows]
    mutations.damage_file(rng, path, lambda rng, _: b"\n".join(lines))


def make_captions(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    copy_images(samples, folder)
    path = folder / "images" / rng.choice(["a.txt", "b.txt"])
    content = path.read_text(encoding="utf-8")
    mutations.damage_file(rng, path, lambda rng, _: mutations.damage_text(rng, content))
    if rng.random() < 0.2:
        (folder / "template.txt").write_bytes(mutations.damage_text(rng, "a painting of [filewords]\nby [name]\n"))


def make_images(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    copy_images(samples, folder)
    images = sorted(path for path in (folder / "images").iterdir() if path.suffix not in (".txt", ".jsonl", ""))
    for path in rng.sample(images, 3):
        mutations.damage_file(rng, path, mutations.damage_bytes)
    if rng.random() < 0.3:
        name = rng.choice([mutations.ESCAPE, "x" * 250, "\udcff\udcfe", "..png", "a\nerror: b", "\u202egpj"])
        shutil.copy(samples / "images" / "g.png", folder / "images" / f"{name[:120]}.png")


def copy_images(samples: Path, folder: Path) -> None:
    shutil.copytree(samples / "images", folder / "images", copy_function=os.link)


def open_data(folder: Path) -> list[Callable[[], object]]:
    flags = [f"--pretrained_model_name_or_path={MODEL}", f"--train_data_dir={folder / 'images'}", "--prompt_emphasis"]
    flags += ["--output_dir=out", f"--cache_dir={folder / 'cache'}", "--resolution=64", "--max_token_chunks=3"]
    if (folder / "template.txt").exists():
        flags.append(f"--template={folder / 'template.txt'}")
    return [lambda: encode(parse_config(flags)), lambda: read_infotexts(folder / "images")]


def encode(config: TrainingConfig) -> None:
    """Read and encode all images and prompts, as a run does before its first step."""
    if not _models:
        _models.append(load_stable_diffusion(identify_base_model(ModelSource.from_config(config))))
    source = open_image_source(config)
    records, problems = index_images(source, config, 8)
    batches = EpochBatchSampler(records, config.train_batch_size, config.seed)
    print(describe_data(source, records, problems, batches, config))
    encode_dataset(_models[0], source, records, config, torch.float32)


def read_infotexts(folder: Path) -> None:
    """Read what xy_plot.py reads from its finished images."""
    for path in sorted(folder.glob("*.png")):
        prompt, _, _ = parse_infotext(read_png_infotext(path) or "")
        split_prompt(prompt)
