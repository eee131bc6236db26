"""Previews against the model's own pipeline; grids and plots by their measures."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline
from matplotlib import rc_context
from PIL import Image

import hypernet
from hypernet import Hypernetwork
from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.model import latents_pipeline
from hypernet.training import previews as preview
from hypernet.training.loss_plot import draw_losses, plot_losses
from hypernet.training.previews import Previewer
from hypernet.utils.image_grid import preview_grid
from tests.helpers.tiny_models import open_models, tiny_pipeline, tiny_vae


@pytest.mark.parametrize("tiled", [False, True])
def test_previews_equal_the_pipeline(models_dir, monkeypatch, tiled):
    monkeypatch.setattr(preview, "TILE", 32)
    path, prompts = str(models_dir / "v_prediction"), ["a red star", "a cat"]
    hypernetwork = Hypernetwork([12, 16, 32], weight_init="kaiming_normal", activation="relu")
    models = open_models(path)
    hypernet.attach(models.unet, hypernetwork)
    state = torch.get_rng_state()
    config = TrainingConfig(
        pretrained_model_name_or_path=path,
        train_data_dir="x",
        resolution="64",
        seed=8,
        validation_prompt=prompts,
        num_validation_images=2,
        validation_inference_steps=3,
        validation_guidance_scale=5.0,
        enable_tiling=tiled,
    )
    rows = Previewer(models, config, Accelerator(cpu=True)).generate()
    assert torch.equal(torch.get_rng_state(), state)

    pipe = StableDiffusionPipeline.from_pretrained(path, dtype=torch.float32)
    pipe.text_encoder.float()
    if tiled:
        pipe.vae.enable_tiling()
        pipe.vae.tile_sample_min_size, pipe.vae.tile_latent_min_size = 32, 4
    hypernet.attach(pipe.unet, hypernetwork)
    for row, prompt in zip(rows, prompts):
        for i, image in enumerate(row):
            generator = torch.Generator().manual_seed(8 + i)
            expected = pipe(
                prompt, num_inference_steps=3, guidance_scale=5.0, height=64, width=64, generator=generator
            ).images[0]
            difference = np.asarray(image, np.int16) - np.asarray(expected, np.int16)
            assert np.abs(difference).max() <= 1


def test_the_size_of_previews_follows_the_vae(tmp_path):
    pipe = tiny_pipeline()
    blocks = {"block_out_channels": (4, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
    pipe.register_modules(vae=tiny_vae(**blocks, up_block_types=("UpDecoderBlock2D",) * 2))
    pipe.save_pretrained(tmp_path)
    models = open_models(tmp_path)
    assert latents_pipeline(models).vae_scale_factor == models.base.image_multiple == 2


def test_grid_keeps_every_picture():
    pictures = [[Image.new("RGB", (64, 64), (50 * row, 80 * column, 9)) for column in range(3)] for row in range(2)]
    grid = preview_grid(pictures, ["a", "a much longer prompt with many words"], ["without", "0.5", "1"])
    colors = dict(grid.getcolors(grid.width * grid.height)[i][::-1] for i in range(len(grid.getcolors(10**6))))
    for row in range(2):
        for column in range(3):
            assert colors[(50 * row, 80 * column, 9)] >= 64 * 64


def test_plot_of_few_and_of_many(recwarn):
    for count in (0, 1, 500):
        rows = [{"step": 10 * (i + 1), "loss": 1 / (i + 1)} for i in range(count)]
        assert plot_losses(rows, "$a_$b 水墨", [], [10]).size == (800, 450)
    first = {"step": 0, "val_loss": 1.2, "val_loss_base": 1.2}
    assert plot_losses([], "ink", [first]).size == (800, 450)
    with rc_context({"savefig.dpi": 300, "savefig.bbox": "tight", "text.usetex": True}):
        assert plot_losses(rows, "ink", [first]).size == (800, 450)
    assert not recwarn.list


def test_the_plot_shows_what_was_measured():
    losses = [0.5, 0.9, 0.4, math.nan, 0.3]
    rows = [{"step": str(10 * i), "loss": str(loss)} for i, loss in enumerate(losses, 1)]
    held_out = [
        {"step": step, "val_loss": loss, "val_loss_base": 1.2} for step, loss in [(0, 1.2), (30, 0.6), (60, 99)]
    ]
    (panel,) = draw_losses(rows, "ink", held_out, returns=[40]).axes
    dots, smooth, measured, base, back = [line.get_xydata().tolist() for line in panel.lines]
    assert dots == [[10, 0.5], [20, 0.9], [30, 0.4], [50, 0.3]]
    assert [step for step, _ in smooth] == [10, 20, 30, 50]
    assert [loss for _, loss in smooth] == pytest.approx([0.5, 1.8 / 3, 1.6 / 3, 0.3])
    assert measured == [[0, 1.2], [30, 0.6], [60, 99]] and base == [[0, 1.2], [30, 1.2], [60, 1.2]]
    assert [x for x, _ in back] == [40, 40]
    assert panel.get_xlim() == (0, 60) and panel.get_ylim() == pytest.approx((0, 1.05 * 1.2))  # 99 has run away
