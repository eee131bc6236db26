"""Open a hypernetwork, whatever its file; write it as any of them."""

import difflib
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hypernet.formats.safe_pickle import NotAHypernetwork
from hypernet.formats.webui import FLOATS, load_webui, save_webui
from hypernet.modeling.hypernetwork import Hypernetwork, build, constructor_arguments
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hub import hub_file

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
    return _load_safetensors(file) if file.suffix.lower() == ".safetensors" else load_webui(file)


def find_weights(path) -> Path:
    """The file with the weights of what `load` opens; from the Hub it is fetched, its config.json, too.

    Raises:
        NotAHypernetwork: if there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    if (path / WEIGHTS_NAME).is_file():
        return path / WEIGHTS_NAME
    hub_id = len(path.parts) == 2 and not path.is_absolute() and path.suffix.lower() not in (".pt", ".safetensors")
    if hub_id and not path.parent.exists():
        return _fetch(path.as_posix())
    raise NotAHypernetwork(f"{path}: {_missing(path)}")


def _missing(path) -> str:
    """Why there is no hypernetwork at `path`, and where one may be."""
    if not path.is_dir():
        names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, 1)
        return "there is no such file or folder" + (f"; did you mean {path.parent / near[0]}?" if near else "")
    if (path / "model_index.json").is_file():
        return "it is a whole Stable Diffusion, no hypernetwork"
    inside = sorted(
        file.parent for file in [*path.glob(f"*/{WEIGHTS_NAME}"), *path.glob(f"checkpoints/*/{WEIGHTS_NAME}")]
    )
    inside += sorted(path.glob("*.pt"))
    return "there is no hypernetwork in this folder itself" + (f"; name {inside[-1]}, say" if inside else "")


def save(hypernetwork: Hypernetwork, path, dtype: torch.dtype | None = None):
    """Write a WebUI `.pt`, a `.safetensors` that stands alone, or, for any other path, a folder for diffusers.

    A `.pt` or `.safetensors` is named after its file. What is there before is replaced once the new one is complete.

    Args:
        dtype: of the weights in the file, float32 (the hypernetwork's own) or float16 for half the size.
    """
    path = Path(path)
    if path.suffix.lower() == ".pt":
        save_webui(hypernetwork, path, dtype)
    elif path.suffix.lower() == ".safetensors":
        _save_safetensors(hypernetwork, path, dtype, name=path.stem)
    else:
        save_folder(hypernetwork, path, dtype)


def save_folder(hypernetwork: Hypernetwork, folder, dtype: torch.dtype | None = None):
    """config.json and safetensors, as diffusers' `save_pretrained` has them, into a folder that may hold other files.

    The safetensors file has the config in it, too, so that both change at once whenever the machine stops.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _save_safetensors(hypernetwork, folder / WEIGHTS_NAME, dtype)
    with atomic_write(folder / "config.json") as temporary:
        temporary.write_text(hypernetwork.to_json_string(), encoding="utf-8")


def _save_safetensors(hypernetwork, path, dtype, **changes):
    config = constructor_arguments(hypernetwork.config)
    tensors = hypernetwork.state_dict().items()
    weights = {name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous() for name, tensor in tensors}
    entry = json.dumps({**config, **changes})
    with atomic_write(path) as temporary:
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
        reason = "it is empty" if path.stat().st_size == 0 else " ".join(str(error).split())
        raise NotAHypernetwork(f"{path}: it is no hypernetwork file, or a damaged one ({reason})") from None
    if any(tensor.dtype not in FLOATS for tensor in weights.values()):
        raise NotAHypernetwork(f"{path}: it holds something else than floating-point weights")
    if {KEY, "sha256"} & metadata.keys():  # written here; other programs may have added to it
        expected = {"format": "pt", "sha256": _digest(metadata.get(KEY, ""), weights)}
        if not expected.items() <= metadata.items():
            raise NotAHypernetwork(f"{path}: it is damaged (its checksum is wrong)")
    try:
        return build(constructor_arguments(config), weights)
    except (ValueError, TypeError, AttributeError) as error:
        raise NotAHypernetwork(f"{path}: it does not fit its config: {' '.join(str(error).split())}") from None


def _read_config(path, metadata, names):
    """What the file says of itself, or the config.json beside it."""
    config_path = path.parent / "config.json"
    try:
        config = json.loads(metadata[KEY] if KEY in metadata else config_path.read_text(encoding="utf-8"))
        described = "Hypernetwork" if KEY in metadata else config.get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        config = described = None
    if described == "Hypernetwork":
        if KEY in metadata and path.name == WEIGHTS_NAME:
            _check_same(config, config_path)
        return config
    kind = None if any(name.startswith("pairs.") for name in names) else kind_of(names)
    if kind:
        raise NotAHypernetwork(f"{path}: it is no hypernetwork but {kind}")
    if described:
        raise NotAHypernetwork(f"{config_path}: it describes a {described}, not a Hypernetwork")
    raise NotAHypernetwork(f"{config_path}: it is missing or damaged, so {path.name} cannot be opened")


def _check_same(config, config_path):
    """A folder's config.json must say what the weights' file does. Raises: NotAHypernetwork if it was changed."""
    try:
        beside = json.loads(config_path.read_text(encoding="utf-8"))
        changed = [key for key in config if key in beside and beside[key] != config[key] and key != "step"]
    except (OSError, ValueError, TypeError, RecursionError):
        return  # the weights' file knows it all
    if changed:
        problem = f"its {changed[0]} is not that of {WEIGHTS_NAME}; convert_to_webui.py makes changed copies"
        raise NotAHypernetwork(f"{config_path}: {problem}")


def _fetch(repo_id):
    try:
        hub_file(repo_id, "config.json")
        return hub_file(repo_id, WEIGHTS_NAME)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        problem = "no such folder here, and on the Hub none, or it cannot be reached"
        raise NotAHypernetwork(f"{repo_id}: {problem} ({reason})") from None
