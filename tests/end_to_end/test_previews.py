"""Previews with their own settings, compared with what examples/generate.py generates."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import generate
from tests.helpers.generation import run_main
from tests.helpers.scripts import train_here

FLAGS = ["--max_train_steps=4", "--checkpointing_steps=2", "--validation_steps=2", "--validation_inference_steps=3"]
FLAGS += ["--learning_rate=1e-2", "--num_validation_images=2", "--name=ink"]


def cells(path):
    """Return the images in a grid of previews: label -> row -> images."""
    grid = Image.open(path).convert("RGB")
    places = json.loads(grid.info["cells"])
    boxes = [[(x, y, x + width, y + height) for x, y, width, height in row] for row in places["cells"]]
    return {
        label: [[grid.crop(box) for box, other in zip(row, places["columns"]) if other == label] for row in boxes]
        for label in places["columns"]
    }


def generated(folder, *flags):
    """Return what examples/generate.py generates with these flags, two images in one batch, and their paths."""
    paths = run_main(generate, [*flags, "--num_images=2", "--batch_size=2", "--output_dir", folder])
    return [Image.open(path) for path in paths], paths


def equal(images, others):
    pairs = list(zip(images, others, strict=True))
    return len(pairs) == 2 and all(np.array_equal(*map(np.asarray, pair)) for pair in pairs)


@pytest.mark.parametrize("model", ["epsilon", "xl"])
def test_previews_equal_generated_images_bit_for_bit(models_dir, images_dir, tmp_path, model):
    words = ["--prompt", "a (red) star, #1", "--negative_prompt", "blue, [dark]"]
    words += ["--steps=3", "--guidance_scale=5", "--seed=9", "--size=64x96", "--sampler=Euler a"]
    plain, paths = generated(tmp_path / "plain", *words, "--model", models_dir / model)
    (tmp_path / "more.yaml").write_text("- {prompt: a cat, sampler: DPM++ 2M SDE Karras, steps: 4, width: 96, seed: 3}")
    template = ["--template=[filewords], by [name]", "--validation_prompt", "[filewords], by [name]"]
    for file in (paths[0], tmp_path / "more.yaml"):
        flags = [*FLAGS, *template, "--validation_prompts_file", file, "--validation_negative_prompt=green"]
        run = tmp_path / Path(file).suffix
        said = train_here(models_dir, images_dir, run, *flags, model=model)
        first, step, last = (
            cells(run / "previews" / f"{name}.png") for name in ("step-000000", "step-000002", "before_after")
        )
        if file == paths[0]:
            assert equal(first["without"][1], plain) and "note: --validation_prompts_file" not in said
        else:
            words = ["--prompt", "a cat", "--negative_prompt=green", "--sampler=dpm++ 2m sde karras", "--steps=4"]
            words += ["--size=96x64", "--seed=3"]
        for images, path in ((step["step 2"], run / "checkpoints" / "step-000002"), (last["with"], run)):
            expected, _ = generated(tmp_path / "images", *words, "--hypernetwork", path)
            assert equal(images[1], expected)
            assert not equal(images[1], first["without"][1])

    # the last line generates the first prompt, whose placeholders are filled as in training
    caption = (images_dir / "0.txt").read_text()
    command = shlex.split(said.strip().splitlines()[-1])
    assert command[command.index("--prompt") + 1] == f"{caption}, by ink"
    expected, _ = generated(tmp_path / "images", *command[2:], "--steps=3", "--size=64")
    assert equal(last["with"][0], expected)
    recorded = json.loads((run / "run.json").read_text())["previews"]
    assert recorded[0]["prompt"] == f"{caption}, by ink" and recorded[1]["size"] == [96, 64]


def test_a_resumed_run_keeps_the_random_seed_and_the_first_previews(models_dir, images_dir, tmp_path):
    run = tmp_path / "run"
    flags = [*FLAGS[1:], "--validation_prompt=a cat", "--validation_seed=-1", "--validation_resolution=32x64"]
    said = train_here(models_dir, images_dir, run, *flags, "--max_train_steps=2")
    seed = json.loads((run / "run.json").read_text())["preview_seed"]
    assert str(seed) in said and json.loads((run / "run.json").read_text())["validation_seed"] == -1
    first, before = (run / "previews" / "step-000000.png").read_bytes(), cells(run / "previews" / "before_after.png")
    train_here(models_dir, images_dir, run, *flags, "--validation_prompt=a dog", "--max_train_steps=3")
    assert json.loads((run / "run.json").read_text())["preview_seed"] == seed
    assert (run / "previews" / "step-000000.png").read_bytes() == first
    after = cells(run / "previews" / "before_after.png")
    assert len(after["without"]) == 2 and equal(before["without"][0], after["without"][0])
    train_here(models_dir, images_dir, run, *flags, "--max_train_steps=1", "--overwrite", "--activation=relu")
    assert json.loads((run / "run.json").read_text())["preview_seed"] != seed
