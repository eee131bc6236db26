"""Open a hypernetwork whatever its file, and write files and folders so that a crash leaves the old ones whole."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hypernet.network import Hypernetwork
from hypernet.webui import NotAHypernetwork, load_webui


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
    if path.is_dir() or path.suffix or path.is_absolute() or len(path.parts) != 2:
        return _load_safetensors(path / "diffusion_pytorch_model.safetensors")
    return _load_from_hub(path.as_posix())


def _load_safetensors(path):
    if not path.is_file():
        raise NotAHypernetwork(f"{path}: there is no such file")
    config_path = path.parent / "config.json"
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise NotAHypernetwork(f"{config_path}: it is missing or not readable, so {path.name} cannot be opened") from None
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
        return Hypernetwork.from_pretrained(repo_id).eval()
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise NotAHypernetwork(f"{repo_id}: there is no such folder, and no such hypernetwork on the Hub: {reason}") from None


@contextlib.contextmanager
def replacing(path):
    """Yield a temporary path beside `path`; what is written there replaces `path` once it is complete and on disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove(temporary)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            _flush(file)
        if path.is_dir():
            _remove(path)  # a folder cannot be renamed over another one
        os.replace(temporary, path)
    finally:
        _remove(temporary)


def _flush(path):
    if path.is_file():
        with open(path, "rb+") as file:
            os.fsync(file.fileno())


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
