"""Open a hypernetwork, whatever its file."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from hypernet.network import Hypernetwork
from hypernet.webui import NotAHypernetwork, load_webui

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"  # as diffusers' save_pretrained calls it


def load(path) -> Hypernetwork:
    """Open a trained folder, a checkpoint, a `.safetensors` with its config.json beside it, a WebUI `.pt` or a Hub id.

    Returns it in evaluation mode on the CPU. No file is ever unpickled with code execution.

    Raises:
        NotAHypernetwork: if there is none, in one line.
    """
    path = Path(path)
    if path.suffix == ".pt":
        if not path.is_file():
            raise NotAHypernetwork(f"{path}: there is no such file")
        return load_webui(path)
    if path.suffix == ".safetensors":
        return _load_safetensors(path)
    if path.is_file():
        raise NotAHypernetwork(f"{path}: it is no hypernetwork; those end in .pt or .safetensors")
    if path.is_dir() or path.is_absolute() or len(path.parts) != 2:
        return _load_safetensors(path / WEIGHTS_NAME)
    return _load_from_hub(path.as_posix())


def _load_safetensors(path):
    if not path.is_file():
        raise NotAHypernetwork(f"{path}: there is no such file")
    config_path = path.parent / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NotAHypernetwork(f"{config_path}: it is missing or damaged, so {path.name} cannot be opened") from None
    if config.get("_class_name") != "Hypernetwork":
        raise NotAHypernetwork(f"{config_path}: it describes a {config.get('_class_name')}, not a Hypernetwork")
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}
        hypernetwork = Hypernetwork.from_config({key: value for key, value in config.items() if key[0] != "_"})
        hypernetwork.load_state_dict(weights)
    except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
        raise NotAHypernetwork(f"{path}: it does not fit its config.json: {' '.join(str(error).split())}") from None
    return hypernetwork.eval()


def _load_from_hub(repo_id):
    try:
        hf_hub_download(repo_id, "config.json")
        return _load_safetensors(Path(hf_hub_download(repo_id, WEIGHTS_NAME)))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotAHypernetwork(
            f"{repo_id}: no such folder here and no such hypernetwork on the Hub ({reason})"
        ) from None
