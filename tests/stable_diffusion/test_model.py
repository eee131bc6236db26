"""Loading a base model: frozen, in the right precision, and only if it is complete."""

import json
import os
import shutil
import time
import zipfile

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


VALUES = [None, True, -1, 1.5, 10**30, "x", [], ["x"], {}, [[1]], "\x1b[31m\n", float("nan")]


def test_a_config_with_an_entry_of_another_type_works_or_is_one_error(models_dir, tmp_path):
    refused = 0
    files = sorted(path for path in (models_dir / "epsilon").rglob("*.json") if path.name != "tokenizer.json")
    places = [(path, key) for path in files for key in json.loads(path.read_text()) if key[0] != "_"]
    assert len(files) >= 6 and len(places) > 100
    folder = tmp_path / "model"
    shutil.copytree(models_dir / "epsilon", folder, copy_function=os.link)
    for number, (path, key) in enumerate(places[::3]):
        damaged = folder / path.relative_to(models_dir / "epsilon")
        damaged.unlink()
        damaged.write_text(json.dumps({**json.loads(path.read_text()), key: VALUES[number % len(VALUES)]}))
        try:
            _ = open_models(folder).base.context_widths
        except UserError as error:
            refused += 1
            assert str(error).startswith(f"--pretrained_model_name_or_path {folder}: ") and str(error).isprintable()
        damaged.write_text(path.read_text())
    assert refused > 20


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[" * 100_000, b"\xff\xfe", b"null"])
@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_config_that_is_not_an_object_is_one_error(models_dir, tmp_path, file, content):
    shutil.copytree(models_dir / "epsilon", tmp_path / "model", copy_function=os.link)
    (tmp_path / "model" / file).unlink()
    (tmp_path / "model" / file).write_bytes(content)
    with pytest.raises(UserError, match=f"--pretrained_model_name_or_path .*{file.partition('/')[0]}"):
        open_models(tmp_path / "model")


def test_pickled_weights_are_scanned_before_they_are_loaded(models_dir, tmp_path):
    """torch takes a minute to say that it does not know a name of 200 kB."""
    shutil.copytree(models_dir / "epsilon", tmp_path / "model", ignore=shutil.ignore_patterns("diffusion*"))
    for part in ("unet", "vae"):
        good = models_dir / "epsilon" / part / "diffusion_pytorch_model.safetensors"
        torch.save(load_file(good), tmp_path / "model" / part / "diffusion_pytorch_model.bin")
    assert open_models(tmp_path / "model").unet is not None
    with zipfile.ZipFile(tmp_path / "model" / "unet" / "diffusion_pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02c" + b"a" * 200_000 + b"\nx\n.")
    started = time.process_time()
    with pytest.raises(UserError, match="code.*safetensors"):
        open_models(tmp_path / "model")
    assert time.process_time() - started < 5


def test_a_tokenizer_of_another_length_is_one_error(models_dir, tmp_path):
    """Without a length, transformers assumes 10^30, to which prompts would be padded."""
    shutil.copytree(models_dir / "epsilon", tmp_path / "model")
    path = tmp_path / "model" / "tokenizer" / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 10**30}))
    with pytest.raises(UserError, match="tokenizer"):
        open_models(tmp_path / "model")
