"""Load a hypernetwork from any of its file formats, and save it in any of them."""

import difflib
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hypernet.formats.safe_pickle import NotAHypernetwork
from hypernet.formats.webui import FLOATS, load_webui, save_webui
from hypernet.modeling.from_weights import build_from_weights
from hypernet.modeling.hypernetwork import Hypernetwork, constructor_arguments
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import reason
from hypernet.utils.file_kinds import FOLDER, NO_FILE, file_problem, kind_of
from hypernet.utils.hub import hub_file
from hypernet.utils.reading import open_safetensors, parse_json_object, read_json_object
from hypernet.utils.user_paths import path_problem

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # as diffusers' save_pretrained names it
CONFIG_KEY = "hypernetwork"  # in the metadata of a .safetensors


def load(path: str | Path) -> Hypernetwork:
    """Load a trained folder, a checkpoint, a `.safetensors`, a WebUI `.pt` or a Hub id.

    A `.safetensors` holds its config in its metadata, or has a config.json beside it. Unpickling never executes code.

    Returns:
        The hypernetwork in float32 and evaluation mode, on the CPU.

    Raises:
        NotAHypernetwork: if there is none; the message is one line and says what the file is instead.
    """
    file = find_weights(path)
    return _load_safetensors(file) if file.suffix.lower() == ".safetensors" else load_webui(file)


def find_weights(path: str | Path) -> Path:
    """Return the weights file of anything `load` accepts; from the Hub, download it and its config.json.

    Raises:
        NotAHypernetwork: if there is none.
    """
    path = Path(os.path.expanduser(path))
    problem = file_problem(path)
    if problem is None:
        return path
    if problem not in (NO_FILE, FOLDER):
        raise NotAHypernetwork(f"{path}: {problem}")
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    may_be_hub_id = (
        len(path.parts) == 2 and not path.is_absolute() and path.suffix.lower() not in (".pt", ".hns", ".safetensors")
    )
    if may_be_hub_id and not path.parent.exists():
        return _download(path.as_posix())
    raise NotAHypernetwork(f"{path}: {_why_missing(path)}")


def _why_missing(path: Path) -> str:
    """Return why there is no hypernetwork at `path`, and where one may be."""
    if not path.is_dir():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        if problem := path_problem(str(path)):
            return problem
        return "there is no such file or folder" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if (path / "model_index.json").is_file():
        return "it is a whole Stable Diffusion model, not a hypernetwork"
    weights = [*path.glob(f"*/{WEIGHTS_NAME}"), *path.glob(f"checkpoints/*/{WEIGHTS_NAME}")]
    inside = [*sorted(file.parent for file in weights), *sorted(path.glob("*.pt"))]
    return "this folder itself is not a hypernetwork" + (f"; did you mean {inside[-1]}?" if inside else "")


def _download(repo_id: str) -> Path:
    try:
        hub_file(repo_id, "config.json")
        return hub_file(repo_id, WEIGHTS_NAME)
    except OSError as error:
        problem = "there is no such folder, and no such repository on the Hub, or it cannot be reached"
        raise NotAHypernetwork(f"{repo_id}: {problem} ({reason(error)})") from None


def save(hypernetwork: Hypernetwork, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a WebUI `.pt`, a self-contained `.safetensors`, or, for any other path, a folder for diffusers.

    A `.pt` or `.safetensors` takes its name from the file name. An existing file is replaced atomically.

    Args:
        dtype: of the weights in the file: float32 (default), or float16 for half the size.
    """
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() == ".pt":
        save_webui(hypernetwork, path, dtype)
    elif path.suffix.lower() == ".safetensors":
        _save_safetensors(hypernetwork, path, dtype, name=path.stem)
    else:
        save_folder(hypernetwork, path, dtype)


def save_folder(hypernetwork: Hypernetwork, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write config.json and safetensors as diffusers' `save_pretrained` does; other files in the folder stay.

    The safetensors file holds the config too, so that a crash between the two files cannot mix them.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_safetensors(hypernetwork, folder / WEIGHTS_NAME, dtype)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(hypernetwork.to_json_string(), encoding="utf-8")


def _save_safetensors(hypernetwork: Hypernetwork, path: Path, dtype: torch.dtype | None, **changes: str) -> None:
    config = json.dumps({**constructor_arguments(hypernetwork.config), **changes})
    tensors = hypernetwork.state_dict().items()
    weights = {name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors}
    with atomic_write(path) as temporary:
        save_file(weights, temporary, {"format": "pt", CONFIG_KEY: config, "sha256": content_digest(config, weights)})


def content_digest(config: str, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a config, as JSON, and of all weights, as hex."""
    digest = hashlib.sha256(config.encode())
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_safetensors(path: Path) -> Hypernetwork:
    try:
        with open_safetensors(path) as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            config = _read_config(path, metadata, names)
            weights = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        problem = "it is empty" if path.stat().st_size == 0 else getattr(error, "strerror", None) or reason(error)
        raise NotAHypernetwork(f"{path}: it is not a hypernetwork file, or it is damaged ({problem})") from None
    if any(tensor.dtype not in FLOATS for tensor in weights.values()):
        raise NotAHypernetwork(f"{path}: it has weights that are not floating-point tensors")
    if {CONFIG_KEY, "sha256"} & metadata.keys():  # written by `save`; other programs may have added keys
        expected = {"format": "pt", "sha256": content_digest(metadata.get(CONFIG_KEY, ""), weights)}
        if not expected.items() <= metadata.items():
            raise NotAHypernetwork(f"{path}: it is damaged (its checksum is wrong)")
    try:
        return build_from_weights(constructor_arguments(config), weights)
    except (ValueError, TypeError, AttributeError) as error:
        raise NotAHypernetwork(f"{path}: it does not fit its config: {reason(error)}") from None


def _read_config(path: Path, metadata: Mapping[str, str], names: Collection[str]) -> dict[str, Any]:
    """Return the config in the file's metadata, or in the config.json beside it."""
    config_path = path.parent / "config.json"
    try:
        config = parse_json_object(metadata[CONFIG_KEY]) if CONFIG_KEY in metadata else read_json_object(config_path)
        class_name = "Hypernetwork" if CONFIG_KEY in metadata else config.get("_class_name")
    except (OSError, ValueError):
        config, class_name = {}, None
    if class_name != "Hypernetwork":
        _refuse(path, config_path, class_name, names)
    if CONFIG_KEY in metadata and path.name == WEIGHTS_NAME:
        _check_same(config, config_path)
    return config


def _refuse(path: Path, config_path: Path, class_name: str | None, names: Collection[str]) -> NoReturn:
    """Raise NotAHypernetwork; the message says what the file may be instead."""
    kind = None if any(name.startswith("pairs.") for name in names) else kind_of(names)
    if kind:
        raise NotAHypernetwork(f"{path}: it is not a hypernetwork but {kind}")
    if class_name:
        raise NotAHypernetwork(f"{config_path}: it describes a {class_name}, not a Hypernetwork")
    raise NotAHypernetwork(f"{config_path}: it is missing or damaged, so {path.name} cannot be loaded")


def _check_same(config: dict[str, Any], config_path: Path) -> None:
    """Raise NotAHypernetwork if a folder's config.json contradicts its weights file because it was edited."""
    try:
        beside = read_json_object(config_path)
        changed = [key for key in config if key in beside and beside[key] != config[key] and key != "step"]
    except (OSError, ValueError):
        return  # the weights file suffices
    if changed:
        problem = f"its {changed[0]} differs from that in {WEIGHTS_NAME}; to change it, use convert_to_webui.py"
        raise NotAHypernetwork(f"{config_path}: {problem}")
