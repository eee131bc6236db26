"""Damaged hypernetworks and optimizer files, and how scripts open them."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

import convert_to_webui
import hypernet
from examples.benchmarks.damage import mutations
from examples.benchmarks.damage.samples import MODEL
from hypernet.cli.training_options import parse_config
from hypernet.formats.webui import read_webui
from hypernet.training.init_from import load_init_from

Steps = list[Callable[[], object]]


def make_pt(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    path = folder / rng.choice(["style.pt", "style.pt", f"{mutations.ESCAPE[:5]}.pt", "s\n.pt"])
    source = samples / rng.choice(["style.pt", "style.pt", "residual.pt"])
    shutil.copy(source, path)
    if rng.random() < 0.5:
        path.write_bytes(mutations.hostile_pickle(rng, read_webui(source), marker))
    else:
        mutations.damage_file(rng, path, mutations.damage_bytes)


def make_safetensors(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    path = folder / "style.safetensors"
    shutil.copy(samples / "style.safetensors", path)
    mutations.damage_file(rng, path, rng.choice([mutations.damage_header, mutations.damage_bytes]))


def make_stack(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    for name in ("style.pt", "residual.pt"):
        shutil.copy(samples / name, folder)
    texts = ["[('style', 0.5), 'residual']", "{'style': 0.7, \"['residual', 'style']\": 0.3}", "{'style', 'residual'}"]
    texts += [
        f"[open({str(marker)!r}, 'w')]",
        "(" + "-" * 60_000 + "1)",
        "[" + "1+" * 30_000 + "1]",
        "['style'," * 8000,
    ]
    (folder / "both.hns").write_bytes(mutations.damage_text(rng, rng.choice(texts)))


def open_stack(folder: Path) -> Steps:
    path = str(folder / "both.hns")
    return [lambda: hypernet.load_stack(path)]


def open_hypernetwork(folder: Path) -> Steps:
    path = str(next(path for path in folder.iterdir() if path.name.endswith((".pt", ".safetensors"))))
    target = str(folder / "converted.safetensors")
    return [
        lambda: convert_to_webui.main(["--inspect", path]),
        lambda: convert_to_webui.main(["--inspect", path, "--json"]),
        lambda: convert_to_webui.main([path, target]),
        lambda: convert_to_webui.main([str(folder / "both.pt"), "--average", path, f"{path}:0.5"]),
        *([lambda: convert_to_webui.main([path, "--fix"])] if path.endswith(".pt") else []),
    ]


def make_optimizer(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    shutil.copy(samples / "style.pt", folder)
    path = folder / "style.pt.optim"
    shutil.copy(samples / path.name, path)
    if rng.random() < 0.6:
        path.write_bytes(mutations.hostile_pickle(rng, torch.load(samples / path.name, weights_only=True), marker))
    else:
        mutations.damage_file(rng, path, mutations.damage_bytes)


def open_optimizer(folder: Path) -> Steps:
    flags = [f"--pretrained_model_name_or_path={MODEL}", f"--train_data_dir={folder}", "--output_dir=../out"]
    return [
        lambda: load_init_from(parse_config([*flags, f"--init_from={folder / 'style.pt'}"])),
        lambda: convert_to_webui.main(["--inspect", str(folder / "style.pt")]),
        lambda: convert_to_webui.main([str(folder / "style.pt"), str(folder / "x.pt"), "--with_optimizer"]),
    ]
