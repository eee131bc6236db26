"""Previews against diffusers' own pipeline."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionPipeline

import hypernet
from hypernet import Hypernetwork
from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.model import latents_pipeline
from hypernet.training import previews
from hypernet.training.previews import Previewer
from hypernet.training.shutdown import Interrupted
from tests.helpers.tiny_models import LONG_PROMPT, open_models, tiny_pipeline, tiny_vae


@pytest.mark.parametrize("tiled", [False, True])
def test_previews_equal_the_pipeline(models_dir, monkeypatch, tiled):
    monkeypatch.setattr(previews, "TILE", 32)
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


def test_preview_size_follows_the_vae(tmp_path):
    pipe = tiny_pipeline()
    blocks = {"block_out_channels": (4, 8), "down_block_types": ("DownEncoderBlock2D",) * 2}
    pipe.register_modules(vae=tiny_vae(**blocks, up_block_types=("UpDecoderBlock2D",) * 2))
    pipe.save_pretrained(tmp_path)
    models = open_models(tmp_path)
    assert latents_pipeline(models).vae_scale_factor == models.base.image_multiple == 2


def test_a_truncated_negative_prompt_is_noted(models_dir):
    models = open_models(models_dir / "epsilon", max_token_chunks=1)
    for words in ("blue", LONG_PROMPT):
        config = TrainingConfig(resolution="64", validation_prompt=["a cat"], validation_negative_prompt=words)
        note = Previewer(models, config, Accelerator(cpu=True)).note
        assert ("--max_token_chunks 1 " in (note or "")) == (words == LONG_PROMPT)


def test_the_same_state_is_sampled_once(epsilon_models, monkeypatch):
    options = {"resolution": "64", "validation_prompt": ["a cat", "a dog"], "validation_inference_steps": 2}
    previewer, sampled, fails = Previewer(epsilon_models, TrainingConfig(**options), Accelerator(cpu=True)), [], []
    sample = previewer.sample_prompt

    def counted(prompt, check):
        sampled.append(prompt.prompt)
        if fails:
            raise Interrupted
        return sample(prompt, check)

    monkeypatch.setattr(previewer, "sample_prompt", counted)
    first = previewer.sample(state=(3, 0))
    assert sampled == ["a cat", "a dog"] and {number: images.shape[0] for number, images in first.items()} == {
        0: 1,
        1: 1,
    }
    assert len(previewer.generate(state=(3, 0))) == 2 and len(sampled) == 2
    fails.append(True)
    with pytest.raises(Interrupted):
        previewer.generate(state=(4, 0))
    fails.clear()
    assert previewer.sample(state=(3, 0)) is first and len(sampled) == 3  # of which one was interrupted
    previewer.sample(state=(3, 1))  # the same step after a rollback
    previewer.sample()
    previewer.sample()
    assert len(sampled) == 3 + 3 * 2
