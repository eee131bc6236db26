"""What is recognised from a model's configs alone, at the shapes of the models that people have."""

import json

import pytest
import torch
from conftest import tiny_unet

from hypernet.errors import UserError
from hypernet.models import context_widths, image_multiple, load_models, weights_hash

SD15 = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "attention_head_dim": 8}
SD21 = {**SD15, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
SDXL = {
    **SD15,
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
}


def folder(path, unet, vae=None):
    (path / "unet").mkdir()
    (path / "vae").mkdir()
    (path / "model_index.json").write_text("{}")
    (path / "unet" / "config.json").write_text(json.dumps(unet))
    (path / "vae" / "config.json").write_text(json.dumps(vae or {"block_out_channels": [128, 256, 512, 512]}))
    return str(path)


@pytest.mark.parametrize("unet, widths", [(SD15, [320, 640, 768, 1280]), (SD21, [320, 640, 1024, 1280])])
def test_widths_of_the_real_shapes(tmp_path, unet, widths):
    path = folder(tmp_path, unet)
    assert context_widths(path) == widths
    assert image_multiple(path) == 8


@pytest.mark.parametrize(
    "unet, message",
    [
        (SDXL, "it is an SDXL model"),
        ({**SD15, "in_channels": 9}, "it is an inpainting"),
        ({"_class_name": "FluxTransformer2DModel"}, "its UNet is a FluxTransformer2DModel"),
    ],
)
def test_other_models_are_refused(tmp_path, unet, message):
    with pytest.raises(UserError, match=message):
        context_widths(folder(tmp_path, unet))


def test_models_are_frozen_and_cast(models_dir):
    models = load_models(str(models_dir / "v_prediction"), unet_dtype=torch.float16)
    assert models.scheduler.config.prediction_type == "v_prediction"
    for module, dtype in (
        (models.unet, torch.float16),
        (models.vae, torch.float32),
        (models.text_encoder, torch.float32),
    ):
        assert not module.training and {p.dtype for p in module.parameters()} == {dtype}
        assert not any(p.requires_grad for p in module.parameters())


def test_missing_weights_are_told_in_one_line(tmp_path):
    with pytest.raises(UserError, match="--pretrained_model_name_or_path") as error:
        load_models(folder(tmp_path, SD15))
    assert "\n" not in str(error.value)


def test_hash_of_weights():
    unet = tiny_unet()
    before, rounded = weights_hash(unet), weights_hash(unet, torch.float16)
    assert before == weights_hash(tiny_unet()) != weights_hash(tiny_unet(seed=1))
    assert rounded != before and weights_hash(unet.half(), torch.float16) == rounded
