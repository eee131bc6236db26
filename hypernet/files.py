"""Open a hypernetwork, whatever its file; write it as any of them."""

import copy
import hashlib
import json
import os
import tempfile
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hypernet.network import Hypernetwork, build
from hypernet.pickles import NotAHypernetwork
from hypernet.recognise import kind_of
from hypernet.replacing import replacing
from hypernet.webui import FLOATS, load_webui, save_webui

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # as diffusers' save_pretrained calls it
KEY = "hypernetwork"  # of the config in the metadata of a .safetensors that stands alone


def load(path) -> Hypernetwork:
    """Open a trained folder, a checkpoint, a `.safetensors`, a WebUI `.pt` or a Hub id.

    A `.safetensors` has its config in its own metadata, or in the config.json beside it. Returns the hypernetwork in
    float32 and evaluation mode on the CPU. No file is ever unpickled with code execution.

    Raises:
        NotAHypernetwork: if there is none, in one line that says what it is instead.
    """
    file = find_weights(path)
    return _load_safetensors(file) if file.suffix == ".safetensors" else load_webui(file)


def find_weights(path) -> Path:
    """The file with the weights of what `load` opens; from the Hub it is fetched, its config.json, too.

    Raises:
        NotAHypernetwork: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if path.suffix not in (".pt", ".safetensors"):
        if not path.is_dir() and not path.is_absolute() and len(path.parts) == 2:
            return _fetch(path.as_posix())
        path = path / WEIGHTS_NAME
    if not path.is_file():
        raise NotAHypernetwork(f"{path}: there is no such file")
    return path


def save(hypernetwork: Hypernetwork, path, dtype: torch.dtype | None = None):
    """Write a WebUI `.pt`, a `.safetensors` that stands alone, or, for any other path, a folder for diffusers.

    A `.pt` or `.safetensors` is named after its file. What is there before is replaced once the new one is complete.

    Args:
        dtype: of the weights in the file, float32 (the hypernetwork's own) or float16 for half the size.
    """
    path = Path(path)
    if path.suffix == ".pt":
        save_webui(hypernetwork, path, dtype)
    elif path.suffix == ".safetensors":
        _save_safetensors(hypernetwork, path, dtype)
    else:
        save_folder(hypernetwork, path, dtype)


def save_folder(hypernetwork: Hypernetwork, folder, dtype: torch.dtype | None = None):
    """config.json and safetensors, as diffusers' `save_pretrained` writes them, into a folder that may hold others."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if dtype not in (None, hypernetwork.dtype):
        hypernetwork = torch.nn.Module.to(copy.deepcopy(hypernetwork), dtype)  # ModelMixin.to warns of float16
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        hypernetwork.save_pretrained(temporary)
        for name in ("config.json", WEIGHTS_NAME):
            os.replace(Path(temporary, name), folder / name)


def _save_safetensors(hypernetwork, path, dtype):
    config = {key: value for key, value in hypernetwork.config.items() if key[0] != "_"}
    tensors = hypernetwork.state_dict().items()
    weights = {name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors}
    entry = json.dumps({**config, "name": path.stem})
    with replacing(path) as temporary:
        save_file(weights, temporary, {"format": "pt", KEY: entry, "sha256": _digest(entry, weights)})


def _digest(entry, weights):
    digest = hashlib.sha256(entry.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_safetensors(path):
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            config = _read_config(path, metadata, names)
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise NotAHypernetwork(f"{path}: it is no hypernetwork file, or a damaged one ({reason})") from None
    if any(tensor.dtype not in FLOATS for tensor in weights.values()):
        raise NotAHypernetwork(f"{path}: it holds something else than floating-point weights")
    if KEY in metadata and metadata.get("sha256") != _digest(metadata[KEY], weights):
        raise NotAHypernetwork(f"{path}: it is damaged (its checksum is wrong)")
    try:
        return build({key: value for key, value in config.items() if key[0] != "_"}, weights)
    except (ValueError, TypeError, AttributeError) as error:
        raise NotAHypernetwork(f"{path}: it does not fit its config: {' '.join(str(error).split())}") from None


def _read_config(path, metadata, names):
    """What the file says of itself, or the config.json beside it."""
    config_path = path.parent / "config.json"
    try:
        config = json.loads(metadata[KEY] if KEY in metadata else config_path.read_text(encoding="utf-8"))
        described = "Hypernetwork" if KEY in metadata else config.get("_class_name")
    except (OSError, ValueError, AttributeError):
        config = described = None
    if described == "Hypernetwork":
        return config
    kind = None if any(name.startswith("pairs.") for name in names) else kind_of(names)
    if kind:
        raise NotAHypernetwork(f"{path}: it is no hypernetwork but {kind}")
    if described:
        raise NotAHypernetwork(f"{config_path}: it describes a {described}, not a Hypernetwork")
    raise NotAHypernetwork(f"{config_path}: it is missing or damaged, so {path.name} cannot be opened")


def _fetch(repo_id):
    try:
        hf_hub_download(repo_id, "config.json")
        return Path(hf_hub_download(repo_id, WEIGHTS_NAME))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotAHypernetwork(
            f"{repo_id}: no such folder here and no such hypernetwork on the Hub ({reason})"
        ) from None
