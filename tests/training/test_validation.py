"""The validation loss against a plain computation with diffusers' own parts."""

import copy
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

import hypernet
from hypernet.data.validation_split import encode_validation, open_validation_folder, split_validation
from hypernet.training.validation import ValidationLoss
from hypernet.utils.hashing import derive_seed
from tests.helpers.image_sets import index_folder
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import TINY_WIDTHS, open_models


@pytest.mark.parametrize("model", ["epsilon", "v_prediction"])
def test_loss_equals_a_plain_computation(models_dir, images_dir, tmp_path, model):
    # random augmentations of the training do not apply to validation images
    flags = ["--validation_split=0.3", "--random_flip", "--latent_sampling=random", "--caption_dropout=0.9", "--seed=4"]
    config, source, records = index_folder(models_dir, images_dir, tmp_path, *flags, model=model)
    source, records, _ = split_validation(source, open_validation_folder(config), records, config, 8)
    models = open_models(models_dir / model)
    hypernetwork = hypernet.Hypernetwork(TINY_WIDTHS, weight_init="kaiming_normal", activation="mish").train()
    unet = hypernet.HypernetworkUNet(models.unet, hypernetwork)
    dataset = encode_validation(models, source, records, config, torch.float32)
    validation = ValidationLoss(dataset, models, Accelerator(cpu=True), batch_size=3)
    state = torch.get_rng_state()
    losses, base_loss = validation.measure(unet), validation.measure_base(unet)
    assert torch.equal(torch.get_rng_state(), state) and hypernetwork.training
    assert losses == validation.measure(unet)  # noise and timesteps are fixed

    pipe = StableDiffusionPipeline.from_pretrained(models_dir / model, dtype=torch.float32)
    files = [images_dir / source.label(record.row) for record in records]
    expected_base, expected = plain_losses(pipe, files, None), plain_losses(pipe, files, hypernetwork)
    assert base_loss == pytest.approx(expected_base.mean().item(), abs=1e-5)
    assert losses["val_loss"] == pytest.approx(expected.mean().item(), abs=1e-5)
    bands = [losses[f"val_loss/{low}-{low + 249}"] for low in (0, 250, 500, 750)]
    assert bands == pytest.approx(expected.mean(0).view(4, 2).mean(1).tolist(), abs=1e-5)


def plain_losses(pipe, files, hypernetwork):
    """Return the losses at the midpoints of eighths of the schedule, (images, 8)."""
    scheduler, rows = DDPMScheduler.from_config(pipe.scheduler.config), []
    unet = pipe.unet if hypernetwork is None else with_hooks(copy.deepcopy(pipe.unet), [(hypernetwork.eval(), 1.0)])
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = pipe.vae.encode(torch.from_numpy(pixels)).latent_dist.mode() * pipe.vae.config.scaling_factor
            text, _ = pipe.encode_prompt(file.with_suffix(".txt").read_text(), "cpu", 1, False)
        sha256, losses = hashlib.sha256(file.read_bytes()).hexdigest(), []
        for i, timestep in enumerate([62, 187, 312, 437, 562, 687, 812, 937]):
            generator = torch.Generator().manual_seed(derive_seed("held out", sha256, i))
            noise, timesteps = torch.randn(latents.shape[1:], generator=generator)[None], torch.tensor([timestep])
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, noise, timesteps)
            noisy = scheduler.add_noise(latents, noise, timesteps)
            with torch.no_grad():
                prediction = unet(noisy, timesteps, text).sample
            losses.append(F.mse_loss(prediction, target))
        rows.append(torch.stack(losses))
    return torch.stack(rows)
