"""Hashes by which base models are told apart: of the files, the weights, and the configs that shape what comes out."""

import hashlib
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open

from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.hashing import file_sha256
from hypernet.utils.hub import hub_file


def model_hash(source: ModelSource, unet: torch.nn.Module) -> str:
    """Ten hex digits by which a hypernetwork remembers a model: of a file as the WebUI has them, the beginning of its
    sha256; of a folder, a hash of the UNet's weights in float16."""
    if source.is_file:
        return file_sha256(source.path)[:10]
    try:
        of_files = _files_hash(_unet_files(source))
    except (OSError, SafetensorError):  # the Hub is not asked twice: what was loaded is what counts
        of_files = None
    return of_files or weights_hash(unet, torch.float16)


def weights_hash(module: torch.nn.Module, dtype: torch.dtype | None = None) -> str:
    """Ten hex digits that change with any weight; with `dtype`, rounded to it."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        _add(digest, name, tensor.detach().to("cpu", dtype))
    return digest.hexdigest()[:10]


def _files_hash(files: list[Path]) -> str | None:
    """The `weights_hash` in float16 of what lies in .safetensors files, whatever was made of it; None without files."""
    where = {}
    for path in files:
        with safe_open(path, framework="pt") as file:
            where |= dict.fromkeys(file.keys(), path)
    digest, opened = hashlib.sha256(), {path: safe_open(path, framework="pt") for path in files}
    for name in sorted(where):
        _add(digest, name, opened[where[name]].get_tensor(name).to(torch.float16))
    return digest.hexdigest()[:10] if files else None


def _add(digest, name, tensor):
    digest.update(name.encode())
    digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _unet_files(source: ModelSource) -> list[Path]:
    """The .safetensors files that the UNet of a folder or a Hub id is loaded from; none where it has other files."""
    folder = Path(source.path) / "unet"
    if not folder.parent.exists():
        folder = hub_file(source.path, "unet/config.json", source.revision).parent
    variant, part = (rf"\.{re.escape(source.variant)}" if source.variant else ""), r"(-\d+-of-\d+)?"
    name = re.compile(rf"diffusion_pytorch_model({variant}{part}|{part}{variant})\.safetensors")
    return sorted(file for file in folder.glob("*.safetensors") if name.fullmatch(file.name))


def vae_hash(vae: AutoencoderKL) -> str:
    """Ten hex digits that change with whatever shapes its unscaled moments: config and weights."""
    return hash_of(shaping(vae.config, "scaling_factor"), weights_hash(vae))


def shaping(config, *others):
    """The entries of a config but for its origin, and others that shape no output."""
    return {key: value for key, value in sorted(config.items()) if key[0] != "_" and key not in others}


def hash_of(*parts) -> str:
    """Ten hex digits of what `repr` shows."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:10]
