"""Hash base models and their parts: files, weights, and the config entries that shape the output."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError

from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.hashing import file_sha256
from hypernet.utils.hub import hub_file
from hypernet.utils.reading import open_safetensors


def model_hash(source: ModelSource, unet: torch.nn.Module) -> str:
    """Return the ten hex digits that identify the base model in a hypernetwork.

    For a file they start its SHA-256, as in the WebUI; for a folder they are a hash of the UNet's weights in float16.
    """
    if source.is_file:
        return file_sha256(source.path)[:10]
    try:
        of_files = _files_hash(_unet_files(source))
    except (OSError, SafetensorError):  # such as no connection to the Hub; the weights are loaded anyway
        of_files = None
    return of_files or weights_hash(unet, torch.float16)


def weights_hash(module: torch.nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return ten hex digits that change with any weight, rounded to `dtype` first if it is given."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        _add(digest, name, tensor.detach().to("cpu", dtype))
    return digest.hexdigest()[:10]


def _files_hash(files: list[Path]) -> str | None:
    """Return the `weights_hash` of .safetensors files in float16, whatever their precision; None if there are none."""
    file_of: dict[str, Path] = {}
    for path in files:
        with open_safetensors(path) as file:
            file_of |= dict.fromkeys(file.keys(), path)
    digest, opened = hashlib.sha256(), {path: open_safetensors(path) for path in files}
    for name in sorted(file_of):
        _add(digest, name, opened[file_of[name]].get_tensor(name).to(torch.float16))
    return digest.hexdigest()[:10] if files else None


def _add(digest: "hashlib._Hash", name: str, tensor: torch.Tensor) -> None:
    digest.update(name.encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _unet_files(source: ModelSource) -> list[Path]:
    """Return the .safetensors files of a folder's or Hub repository's UNet; none if its weights are in other files."""
    folder = Path(source.path) / "unet"
    if not folder.parent.exists():
        folder = hub_file(source.path, "unet/config.json", source.revision).parent
    variant, part = (rf"\.{re.escape(source.variant)}" if source.variant else ""), r"(-\d+-of-\d+)?"
    name = re.compile(rf"diffusion_pytorch_model({variant}{part}|{part}{variant})\.safetensors")
    return sorted(file for file in folder.glob("*.safetensors") if name.fullmatch(file.name))


def vae_hash(vae: AutoencoderKL) -> str:
    """Return ten hex digits that change with everything that shapes the unscaled moments: config and weights."""
    return parts_hash(config_items(vae.config, "scaling_factor"), weights_hash(vae))


def config_items(config: Mapping[str, Any], *ignored: str) -> dict[str, Any]:
    """Return a config's entries, sorted, without private ones and the `ignored` ones, which do not shape the output."""
    return {key: value for key, value in sorted(config.items()) if key[0] != "_" and key not in ignored}


def parts_hash(*parts: object) -> str:
    """Return ten hex digits of the parts' `repr`."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
