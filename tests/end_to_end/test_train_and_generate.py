"""Train a hypernetwork, then generate with it, as a user does."""

import shutil

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

import hypernet
from examples import generate
from tests.helpers.scripts import one_line_error, train_here


def test_generated_images_equal_those_of_diffusers(models_dir, images_dir, tmp_path, capsys):
    output = tmp_path / "style"
    train_here(models_dir, images_dir, output, "--max_train_steps=2", "--checkpointing_steps=1", "--learning_rate=1e-2")
    capsys.readouterr()
    flags = ["--prompt", "a red star", "--steps=3", "--seed=4", "--num_images=2", "--output_dir", tmp_path / "images"]
    generate.main([str(flag) for flag in ("--hypernetwork", output, "--strength=0.8", *flags)])
    paths = capsys.readouterr().out.splitlines()
    assert len(paths) == 2
    pipe = StableDiffusionPipeline.from_pretrained(models_dir / "epsilon", dtype=torch.float32)
    hypernet.attach(pipe.unet, hypernet.load(output / "style.pt"), 0.8)
    for i, path in enumerate(paths):
        generator = torch.Generator().manual_seed(4 + i)
        expected = pipe("a red star", num_inference_steps=3, guidance_scale=7.5, generator=generator).images[0]
        difference = np.asarray(Image.open(path), np.int16) - np.asarray(expected, np.int16)
        assert np.abs(difference).max() <= 1
    alone = shutil.copy(output / "style.pt", tmp_path)
    assert "--model" in one_line_error(generate.main, "--hypernetwork", alone, *flags)
