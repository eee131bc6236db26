"""Another VAE than the model's own, from a folder or a file."""

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from safetensors.torch import save_file

from hypernet.data.latents import vae_notes
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.errors import UserError
from tests.helpers.original_format import original_state_dict
from tests.helpers.tiny_models import open_models, tiny_vae


class RandomLatents:
    """Latents with a known standard deviation."""

    def __init__(self, deviation):
        self.deviation = deviation

    def __len__(self):
        return 100

    def sample(self, index, crop, flip, generator):
        return self.deviation * torch.randn(4, 16, 16, generator=generator)


def test_replaces_the_vae_by_one_from_a_folder(models_dir, tmp_path):
    other = tiny_vae(scaling_factor=0.13)
    torch.nn.init.normal_(other.encoder.conv_in.weight)
    other.save_pretrained(tmp_path / "vae")
    models = open_models(models_dir / "epsilon", pretrained_vae_model_name_or_path=str(tmp_path / "vae"))
    assert isinstance(models.vae, AutoencoderKL) and models.vae.config.scaling_factor == 0.13
    assert torch.equal(models.vae.encoder.conv_in.weight, other.encoder.conv_in.weight)
    scale, deviation = vae_notes(models.base, RandomLatents(5.0))
    assert "0.13" in scale and "0.7" in scale and "5.0" in deviation
    assert vae_notes(open_models(models_dir / "epsilon").base, RandomLatents(1.0)) == []


def test_replaces_the_vae_by_one_from_a_file(models_dir, tmp_path):
    states = original_state_dict(StableDiffusionPipeline.from_pretrained(models_dir / "epsilon"))
    vae = {key: value for key, value in states.items() if key.startswith("first_stage")}
    save_file(states, tmp_path / "whole.safetensors")
    save_file({key: value for key, value in states.items() if key not in vae}, tmp_path / "without_vae.safetensors")
    save_file(vae, tmp_path / "vae.safetensors")
    own = open_models(models_dir / "epsilon").vae.state_dict()
    options = {"model_config": str(models_dir / "epsilon")}
    options["pretrained_vae_model_name_or_path"] = str(tmp_path / "vae.safetensors")
    for file in ("without_vae.safetensors", "whole.safetensors"):
        models = open_models(tmp_path / file, **options)
        assert all(torch.equal(own[key], value) for key, value in models.vae.state_dict().items())


def test_refuses_a_vae_that_does_not_fit(models_dir, tmp_path):
    tiny_vae(latent_channels=16).save_pretrained(tmp_path / "flux")
    unet = models_dir / "epsilon" / "unet" / "diffusion_pytorch_model.safetensors"
    for path, named in ((tmp_path / "flux", "16 channels, .* 4"), (unet, "VAE")):
        with pytest.raises(UserError, match=f"--pretrained_vae_model_name_or_path {path}: .*{named}"):
            identify_base_model(ModelSource(str(models_dir / "epsilon"), pretrained_vae_model_name_or_path=str(path)))
