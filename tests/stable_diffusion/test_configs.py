"""Configs with impossible entries are refused when they are read; those of real models are accepted."""

import os

import pytest
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel

from hypernet.stable_diffusion.configs import check_config, check_index, parse_original_config, read_config
from tests.helpers.tiny_models import tiny_pipeline, tiny_xl_pipeline
from tests.stable_diffusion.test_base_model import INDEX, INDEX_XL, SD15, SD21, SDXL, SSD_1B, TINY_SD

UNET, VAE, SCHEDULER = UNet2DConditionModel, AutoencoderKL, DDPMScheduler


@pytest.mark.parametrize("unet", [SD15, SD21, SDXL, SSD_1B, TINY_SD])
def test_accepts_real_configs(unet):
    assert check_config(unet, UNET) == unet
    for index in (INDEX, INDEX_XL, {**INDEX, "safety_checker": ["stable_diffusion", "X"], "feature_extractor": None}):
        assert check_index(index) == index


@pytest.mark.parametrize("build", [tiny_pipeline, tiny_xl_pipeline])
def test_accepts_what_diffusers_writes(build, tmp_path):
    build().save_pretrained(tmp_path)
    parts = {"unet": UNET, "vae": VAE, "scheduler": SCHEDULER, "text_encoder": None}
    for part, model_class in parts.items():
        assert read_config(str(tmp_path), None, model_class, part)
    assert read_config(str(tmp_path), None, DiffusionPipeline)["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_accepts_odd_but_valid_entries():
    odd = {"upcast_attention": None, "sample_size": 64.0, "norm_eps": 1, "unknown": [1, {"a": None}], "_x": 10**30}
    assert check_config({**SD15, **odd}, UNET) == {**SD15, **odd}
    assert check_config({"scaling_factor": 1, "latents_mean": [-0.1, 0.2], "shift_factor": -0.5}, VAE)
    assert check_config({"trained_betas": [0.1] * 1000, "prediction_type": "v_prediction"}, SCHEDULER)


@pytest.mark.parametrize(
    "model_class, key, value",
    [
        (UNET, "block_out_channels", "320"),
        (UNET, "block_out_channels", None),
        (UNET, "block_out_channels", [320, "640"]),
        (UNET, "down_block_types", [1, 2]),
        (UNET, "cross_attention_dim", {}),
        (UNET, "layers_per_block", 10**6),
        (UNET, "attention_head_dim", 10**30),
        (UNET, "norm_num_groups", -1),
        (UNET, "in_channels", True),
        (UNET, "in_channels", 4.5),
        (UNET, "norm_eps", float("nan")),
        (UNET, "flip_sin_to_cos", "yes"),
        (UNET, "unknown", [0] * 100_000),
        (VAE, "scaling_factor", "0.18"),
        (SCHEDULER, "num_train_timesteps", 10**12),
        (SCHEDULER, "prediction_type", ["epsilon"]),
        (None, "num_hidden_layers", 10**4),
        (None, "max_position_embeddings", 10**9),
    ],
)
def test_refuses_impossible_entries(model_class, key, value):
    with pytest.raises(ValueError, match=key):
        check_config({key: value}, model_class)


@pytest.mark.parametrize(
    "entry",
    [
        {"unet": "UNet2DConditionModel"},
        {"unet": ["diffusers"]},
        {"unet": ["diffusers", 5]},
        {"unet": ["mine", "UNet"]},  # a module beside the weights
        {"scheduler": ["os", "system"]},
        {"_class_name": ["mine", "Pipeline"]},
        {"force_zeros_for_empty_prompt": {}},
    ],
)
def test_refuses_parts_that_are_not_library_classes(entry):
    with pytest.raises(ValueError, match=next(iter(entry))):
        check_index({**INDEX, **entry})


def test_reads_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(OSError):
        read_config(str(tmp_path), None, VAE)


def test_refuses_aliases_in_an_original_config():
    assert parse_original_config("model: {params: {a: 1}}") == {"model": {"params": {"a": 1}}}
    lists = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(20))
    for text in (
        lists + "model: {params: {}}",
        "[" * 100_000,
        "model: 3",
        "model: {params: 3}",
        "- a",
        "a: 2020-99-99",
    ):
        with pytest.raises(ValueError):
            parse_original_config(text)
