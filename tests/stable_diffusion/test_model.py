"""Loading a base model: frozen, in the right precision, and only if it is complete."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from hypernet.utils.errors import UserError
from tests.helpers.tiny_models import open_models


def test_models_are_frozen_and_cast(models_dir):
    for model in ("v_prediction", "xl"):
        models = open_models(models_dir / model, unet_dtype=torch.float16)
        assert models.scheduler.config.prediction_type == ("epsilon" if model == "xl" else "v_prediction")
        for module, dtype in [(models.unet, torch.float16), *((part, torch.float32) for part in models.text_encoders)]:
            assert not module.training and {p.dtype for p in module.parameters()} == {dtype}
            assert not any(p.requires_grad for p in module.parameters())


def test_refuses_a_text_encoder_with_missing_tensors(models_dir, tmp_path):
    shutil.copytree(models_dir / "epsilon", tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    states = {name: value for name, value in load_file(file).items() if "layers.0.layer_norm1" not in name}
    save_file(states, file, {"format": "pt"})
    with pytest.raises(UserError, match="--pretrained_model_name_or_path .*text_encoder.*layer_norm1"):
        open_models(tmp_path / "model")


def test_reports_missing_weights_in_one_line(models_dir, tmp_path):
    weights = shutil.ignore_patterns("*.safetensors")
    shutil.copytree(models_dir / "epsilon", tmp_path / "model", ignore=weights)
    with pytest.raises(UserError, match="--pretrained_model_name_or_path .*model") as error:
        open_models(tmp_path / "model")
    assert "\n" not in str(error.value)
