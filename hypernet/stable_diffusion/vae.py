"""Replace the model's own VAE by another: check that it fits the model, and load it."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL

from hypernet.stable_diffusion.configs import read_config
from hypernet.stable_diffusion.model_source import UNREACHED, UNSAFE, ModelSource
from hypernet.stable_diffusion.single_file import check_pickles, read_shapes
from hypernet.utils.errors import UserError, one_line, reason
from hypernet.utils.hub import is_hub_id
from hypernet.utils.pickle_scanner import RefusedCode


def vae_error(source: ModelSource, problem: str) -> UserError:
    """Return an error that names the VAE in use by its option."""
    path = source.pretrained_vae_model_name_or_path
    option = f"--pretrained_vae_model_name_or_path {path}"
    return UserError(f"{option}: {problem}") if path else source.error(f"VAE: {problem}")


def read_vae_config(source: ModelSource, own: dict[str, Any]) -> dict[str, Any]:
    """Return the config of the VAE in use: that of the option, else the model's own, which a single file needs too.

    Args:
        own: config of the model's own VAE.

    Raises:
        UserError: if there is no such VAE, or its latents differ from the model's in size or number of channels.
    """
    path = source.pretrained_vae_model_name_or_path
    if path is None:
        return own
    if Path(path).exists() and not Path(path).is_dir():
        tensors = read_shapes(path, lambda problem: vae_error(source, problem))
        weights = [tensors[name] for name in tensors if name.endswith("decoder.conv_in.weight")]
        channels = [weight.shape[1] for weight in weights if weight.ndim == 4]
        if not channels:
            raise vae_error(source, "it is a file without a VAE")
        if not any(name.endswith("encoder.conv_in.weight") for name in tensors):
            raise vae_error(source, "it has no encoder, which training needs")
        config = {**own, "latent_channels": channels[0]}
    else:
        config = _read_folder(source, path)
    used, needed = (vae.get("latent_channels", 4) for vae in (config, own))
    if used != needed:
        problem = f"its latents have {used} channels, the model's {needed}; it is a VAE for another kind of model"
        raise vae_error(source, problem)
    if "block_out_channels" not in own:
        raise source.error("its own VAE is not an AutoencoderKL, so no other can be compared with it")
    used, needed = (2 ** (len(vae.get("block_out_channels", (64,))) - 1) for vae in (config, own))
    if used != needed:
        raise vae_error(source, f"it shrinks images by a factor of {used}, the model needs {needed}")
    return config


def _read_folder(source: ModelSource, path: str) -> dict[str, Any]:
    if not Path(path).exists() and not is_hub_id(path):
        raise vae_error(source, "there is no such file or folder")
    try:
        config = read_config(path, None, AutoencoderKL, _subfolder(path))
    except Exception as error:  # the Hub's client raises errors of any kind
        problem = f"its config cannot be used ({reason(error)})" if Path(path).exists() else UNREACHED
        raise vae_error(source, problem) from None
    if config.get("_class_name") != "AutoencoderKL":
        raise vae_error(source, f"it is a {one_line(config.get('_class_name'), 60)}, not an AutoencoderKL")
    return config


def _subfolder(path: str) -> str | None:
    """Return the VAE's subfolder: "vae" in the folder of a whole model, None in the VAE's own."""
    return "vae" if (Path(path) / "model_index.json").is_file() else None


def load_vae(
    source: ModelSource, path: str, configs: str | None, original: dict[str, Any] | None, dtype: torch.dtype
) -> AutoencoderKL:
    """Load a VAE from a folder, the Hub or a file.

    Args:
        path: --pretrained_vae_model_name_or_path.
        configs: for a file: diffusers folder or Hub id of a model with the same VAE config.
        original: for a file: the original config, if there is one.

    Raises:
        UserError: if its weights cannot be loaded.
    """
    try:
        if not Path(path).is_file():
            check_pickles(Path(path, _subfolder(path) or "."))
            vae = AutoencoderKL.from_pretrained(path, subfolder=_subfolder(path), dtype=dtype)
        else:
            kwargs = {"original_config": original} if original else {"config": configs, "subfolder": "vae"}
            vae = AutoencoderKL.from_single_file(path, dtype=dtype, **kwargs)
        if any(parameter.is_meta for parameter in vae.parameters()):
            raise ValueError("tensors are missing")
        return vae
    except RefusedCode:
        raise vae_error(source, f"it {UNSAFE}") from None
    except Exception as error:  # damaged weights and configs raise errors of any kind
        raise vae_error(source, f"it cannot be loaded ({reason(error)})") from None
