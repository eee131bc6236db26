"""Damaged run folders and YAML files, and how scripts open them."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate.state import AcceleratorState

import convert_to_webui
import train_hypernetwork
from examples import compare, generate
from examples.benchmarks.damage import mutations
from examples.benchmarks.damage.samples import MODEL, run_options
from examples.comparison.grid import read_grid
from hypernet.cli.training_options import parse_config
from hypernet.training.init_from import load_init_from

Steps = list[Callable[[], object]]
OPTIONS = {
    "pretrained_model_name_or_path": str(MODEL),
    "train_data_dir": "images",
    "learning_rate": "5e-5:100, 1e-5:200",
    "layer_structure": [1, 2, 1],
    "widths": [32, 48],
    "lora": ["a.safetensors:0.5"],
    "validation_prompt": ["a cat", "a dog: sitting"],
    "template": "a painting of [filewords], by [name]",
    "max_train_steps": 200,
    "guard": True,
}


def make_run_folder(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    shutil.copytree(samples / "run", folder / "run", ignore=shutil.ignore_patterns("*.lock"))
    shutil.copytree(samples / "images", folder / "images", copy_function=os.link)
    shutil.copytree(samples / "cache", folder / "cache", copy_function=os.link)
    files = sorted(path for path in (folder / "run").rglob("*") if path.is_file() and path.suffix != ".lock")
    text = [path for path in files if path.suffix in (".json", ".csv")]
    path = rng.choice([*text * 2, *files])
    if path.suffix == ".json":
        mutations.damage_file(rng, path, mutations.damage_json)
    elif path.suffix in (".csv", ".md"):
        content = path.read_text()
        mutations.damage_file(rng, path, lambda rng, _: mutations.damage_text(rng, content))
    else:
        mutations.damage_file(rng, path, mutations.damage_bytes)


def open_run_folder(folder: Path) -> Steps:
    run, out = folder / "run", folder / "out"
    options = run_options(folder / "images", run)
    generating = ["--prompt", "a cat", "--steps", "1", "--size", "64", "--output_dir", str(out)]

    def resume() -> None:
        AcceleratorState._reset_state(True)
        train_hypernetwork.main(parse_config([*options, "--max_train_steps=3"]))

    return [
        lambda: convert_to_webui.main([str(run), str(folder / "x.safetensors")]),
        lambda: convert_to_webui.main(["--inspect", str(run), str(run / "style.pt")]),
        lambda: generate.main(["--hypernetwork", str(run), *generating]),
        lambda: generate.main(["--hypernetwork_dir", str(folder), *generating, "--prompt", "<hypernet:run:1>"]),
        lambda: compare.main([str(run), "--output_dir", str(out)]),
        lambda: load_init_from(
            parse_config([*options, "--output_dir=new", "--max_train_steps=3", f"--init_from={run}"])
        ),
        resume,
    ]


def make_yaml(rng: random.Random, samples: Path, folder: Path, marker: Path) -> None:
    shutil.copytree(samples / "images", folder / "images", copy_function=os.link)
    options: dict[str, Any] = {**OPTIONS, "grid": {"seed": [1, 2], "activation": ["relu", "swish"]}}
    (folder / "options.yaml").write_text(yaml.safe_dump(OPTIONS))
    (folder / "grid.yaml").write_text(yaml.safe_dump(options))
    path, options = rng.choice([(folder / "options.yaml", OPTIONS), (folder / "grid.yaml", options)])
    hostile = ["&a [*a]", "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "- [" * 20_000, "{" * 50_000, "? " * 50_000]
    hostile += [f"learning_rate: !!python/object/apply:os.system ['touch {marker}']", "max_train_steps: " + "9" * 10**5]
    lists = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(12))
    hostile += ["a0: &a0 [x]\n" + lists + "validation_prompt: *a12", mutations.ESCAPE, 'name: "\\e[31m\\u0007"']
    way = rng.randrange(4)
    if way == 0:
        content = rng.choice(hostile).encode()
    elif way == 1:
        content = mutations.damage_text(rng, yaml.safe_dump(options))
    else:
        content = yaml.safe_dump(mutations.damage_value(rng, options), allow_unicode=rng.random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    path.write_bytes(content)
    if rng.random() < 0.1:
        mutations.replace_file(rng, path)


def open_yaml(folder: Path) -> Steps:
    grid, output = folder / "grid.yaml", folder / "out"
    return [
        lambda: parse_config(["--config", str(folder / "options.yaml"), "--output_dir=out"]),
        lambda: read_grid(grid, output),
        lambda: compare.main([str(grid), "--dry_run", "--output_dir", str(output)]),
    ]
