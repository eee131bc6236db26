"""Another VAE than the model's own: whether it goes with it, its loading, and whether its latents look right."""

import pickle
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from hypernet.stable_diffusion.model_source import UNREACHED, UNSAFE, ModelSource
from hypernet.stable_diffusion.single_file import read_shapes
from hypernet.utils.errors import UserError
from hypernet.utils.hub import is_hub_id


def vae_error(source: ModelSource, problem: str) -> UserError:
    """Of the VAE that is used, by the option that names it."""
    path = source.pretrained_vae_model_name_or_path
    return (
        UserError(f"--pretrained_vae_model_name_or_path {path}: {problem}") if path else source.error(f"VAE: {problem}")
    )


def read_vae_config(source: ModelSource, own: dict) -> dict:
    """The config of the VAE that is used: that of the option, or the model's own, which a single file goes by, too.

    Raises:
        UserError: if there is no such VAE, or its latents have other channels, or another size, than the model's.
    """
    path = source.pretrained_vae_model_name_or_path
    if path is None:
        return own
    if Path(path).is_file():
        names = read_shapes(path, lambda problem: vae_error(source, problem))
        channels = [names[name].shape[1] for name in names if name.endswith("decoder.conv_in.weight")]
        if not channels:
            raise vae_error(source, "it is a file without a VAE")
        if not any(name.endswith("encoder.conv_in.weight") for name in names):
            raise vae_error(source, "there is no encoder in it, which the training needs")
        config = {**own, "latent_channels": channels[0]}
    else:
        config = _read_folder(source, path)
    here, there = (vae.get("latent_channels", 4) for vae in (config, own))
    if here != there:
        raise vae_error(
            source, f"its latents have {here} channels, the model's {there}; it is a VAE of another kind of model"
        )
    if "block_out_channels" not in own:
        raise source.error("its own VAE is no AutoencoderKL, so no other can be measured against it")
    here, there = (len(vae["block_out_channels"]) for vae in (config, own))
    if here != there:
        raise vae_error(
            source, f"it makes images {2 ** (here - 1)} times smaller, the model needs {2 ** (there - 1)} times"
        )
    return config


def _read_folder(source, path):
    if not Path(path).exists() and not is_hub_id(path):
        raise vae_error(source, "there is no such file or folder")
    try:
        config = AutoencoderKL.load_config(path, subfolder=_subfolder(path))
    except (OSError, ValueError) as error:
        problem = f"its config cannot be read ({str(error).splitlines()[0]})" if Path(path).exists() else UNREACHED
        raise vae_error(source, problem) from None
    if config.get("_class_name") != "AutoencoderKL":
        raise vae_error(source, f"it is a {config.get('_class_name')}, not an AutoencoderKL")
    return config


def _subfolder(path) -> str | None:
    """Where the VAE lies in a folder: a whole model's own, or the folder itself."""
    return "vae" if (Path(path) / "model_index.json").is_file() else None


def load_vae(source: ModelSource, configs: str | None, original: dict | None, dtype: torch.dtype) -> AutoencoderKL:
    """The VAE of --pretrained_vae_model_name_or_path. Raises: UserError if its weights cannot be loaded."""
    path = source.pretrained_vae_model_name_or_path
    try:
        if not Path(path).is_file():
            vae = AutoencoderKL.from_pretrained(path, subfolder=_subfolder(path), dtype=dtype)
        else:
            where = {"original_config": original} if original else {"config": configs, "subfolder": "vae"}
            vae = AutoencoderKL.from_single_file(path, dtype=dtype, **where)
        if any(parameter.is_meta for parameter in vae.parameters()):
            raise ValueError("tensors are missing in it")
        return vae
    except pickle.UnpicklingError:
        raise vae_error(source, f"it {UNSAFE}") from None
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise vae_error(source, f"it cannot be loaded ({' '.join(str(error).split())[:200]})") from None


