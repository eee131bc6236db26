"""Damaged base models and LoRAs, and how scripts open them."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from examples import generate
from examples.benchmarks.damage import mutations
from examples.benchmarks.damage.samples import MODEL
from hypernet.cli.training_options import parse_config
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource

Steps = list[Callable[[], object]]


def generate_with(model: Path, *flags: str) -> Callable[[], None]:
    """Return a function that generates a small image with a model."""
    options = ["--model", str(model), "--prompt", "a (cat:1.1)", "--steps", "1", "--size", "64", *flags]
    return lambda: generate.main([*options, "--output_dir", str(Path.cwd() / "generated")])


def make_ckpt(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    path = folder / "model.ckpt"
    if rng.random() < 0.6:
        data = torch.load(samples / path.name, weights_only=True)
        if rng.random() < 0.5:
            name = rng.choice(list(data["state_dict"]))
            data["state_dict"][name] = rng.choice([torch.zeros(2), torch.zeros(()), torch.zeros(1, 0, 7), None, "x", 3])
            path.write_bytes(mutations.save(data, rng.random() < 0.5))
        else:
            path.write_bytes(mutations.hostile_pickle(rng, data, marker))
    else:
        shutil.copy(samples / path.name, path)
        mutations.damage_file(rng, path, mutations.damage_bytes)


def make_model_file(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    path = folder / "model.safetensors"
    shutil.copy(samples / path.name, path)
    mutations.damage_file(
        rng, path, rng.choice([mutations.damage_header, mutations.damage_header, mutations.damage_bytes])
    )


def open_model_file(folder: Path) -> Steps:
    path = next(path for path in folder.iterdir() if path.name.startswith("model."))
    as_vae = ["--pretrained_vae_model_name_or_path", str(path)]
    return [generate_with(path, "--model_config", str(MODEL)), generate_with(MODEL, *as_vae)]


def make_model_folder(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    shutil.copytree(samples / "model", folder / "model", copy_function=os.link)
    files = sorted(path for path in (folder / "model").rglob("*") if path.is_file())
    path = rng.choice([path for path in files if path.suffix == ".json"] * 4 + files)
    if path.suffix == ".safetensors" and rng.random() < 0.4:
        path.unlink()
        weights = {"conv_in.weight": torch.zeros(2), "x": torch.zeros(3)}
        name = "pytorch_model.bin" if "text" in path.parent.name else "diffusion_pytorch_model.bin"
        path.with_name(name).write_bytes(mutations.hostile_pickle(rng, weights, marker))
    else:
        mutations.damage_file(rng, path, mutations.damage_json if path.suffix == ".json" else mutations.damage_bytes)
    if rng.random() < 0.2:  # code beside the weights, which a config may name
        (folder / "model" / "unet" / "mine.py").write_text(f"open({str(marker)!r}, 'w')\nclass UNet: pass\n")
        index = json.loads((MODEL / "model_index.json").read_text())
        index |= rng.choice(
            [{"unet": ["mine", "UNet"]}, {"_class_name": ["mine", "UNet"]}, {"extra": ["mine", "UNet"]}]
        )
        shutil.rmtree(folder / "model" / "model_index.json", ignore_errors=True)
        (folder / "model" / "model_index.json").unlink(missing_ok=True)
        (folder / "model" / "model_index.json").write_text(json.dumps(index))


def open_model_folder(folder: Path) -> Steps:
    vae = str(folder / "model" / "vae")
    flags = [f"--pretrained_model_name_or_path={folder / 'model'}", f"--train_data_dir={folder}", "--output_dir=../out"]
    return [
        generate_with(folder / "model"),
        generate_with(MODEL, "--pretrained_vae_model_name_or_path", vae),
        lambda: identify_base_model(ModelSource.from_config(parse_config(flags))).context_widths,
    ]


def make_lora(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    path = folder / "ink.safetensors"
    shutil.copy(samples / path.name, path)
    mutations.damage_file(rng, path, rng.choice([mutations.damage_header, mutations.damage_bytes, rename_tensors]))


def rename_tensors(rng: random.Random, content: bytes) -> bytes:
    """Give the tensors of a LoRA other names."""
    length = int.from_bytes(content[:8], "little")
    word, other = rng.choice([(b"to_k", b"to_x"), (b"lora_A", b"lora_C"), (b"unet.", b"text_"), (b"attn2", b"attn7")])
    return content[:8] + content[8 : 8 + length].replace(word, other) + content[8 + length :]


def open_lora(folder: Path) -> Steps:
    return [generate_with(MODEL, "--lora", f"{folder / 'ink.safetensors'}:0.5")]
