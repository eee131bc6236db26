"""The AUTOMATIC1111 WebUI's `.pt` file: read it without running code, write it so that every version loads it."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hypernet.formats.safe_pickle import NotAHypernetwork, read_plain, write_plain
from hypernet.modeling.from_weights import build_from_weights
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.modeling.structure import ACTIVATIONS
from hypernet.utils.file_kinds import kind_of

WEIGHT_INIT_NAMES = {  # ours -> the WebUI's, which has no "zero"
    "normal": "Normal",
    "xavier_uniform": "XavierUniform",
    "xavier_normal": "XavierNormal",
    "kaiming_uniform": "KaimingUniform",
    "kaiming_normal": "KaimingNormal",
    "zero": "Normal",
}
UPSAMPLE_LINEAR = {"nearest": None, "linear": "Linear"}  # our skip_connection -> the extension's upsample_linear
OLD_LAYER_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}  # files of the first weeks, October 2022
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
EXTENSION = "the Hypernetwork-MonkeyPatch-Extension"  # of the WebUI
EXTENSION_FIELDS = ("skip_connection", "upsample_linear")  # only it writes them, whatever the hypernetwork
FIELDS: dict[str, type] = {  # each may also be None
    "step": int,
    "name": str,
    "layer_structure": list,
    "activation_func": str,
    "is_layer_norm": bool,
    "weight_initialization": str,
    "sd_checkpoint": str,
    "sd_checkpoint_name": str,
    "activate_output": bool,
    "use_dropout": bool,
    "dropout_structure": list,
    "last_layer_dropout": bool,
    "optional_info": str,
    "skip_connection": bool,
}
IGNORED = {"upsample_linear"}  # the names of the weights say the same


def save_webui(hypernetwork: Hypernetwork, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a WebUI `.pt` in PyTorch's legacy serialization, which passes the file check of every WebUI version.

    The `name` field is the file's stem, because the WebUI caches a hypernetwork under the field and looks it up by the
    stem. `load_webui` verifies the checksum that follows the data.

    Args:
        dtype: of the weights in the file: float32 (default), or float16 for half the size.
    """
    path = Path(path)
    data: dict[Any, Any] = {**webui_fields(hypernetwork), "name": path.stem}
    for width, pair in hypernetwork.pairs.items():
        data[int(width)] = tuple(_plain_state_dict(pair[part], dtype) for part in ("k", "v"))
    write_plain(data, path)


def webui_fields(hypernetwork: Hypernetwork) -> dict[str, Any]:
    """Return everything but the weights that the WebUI's file holds; see `FIELDS`."""
    config = hypernetwork.config
    dropout = config.dropout_structure
    fields = {
        "step": config.step,
        "name": config.name,
        "layer_structure": [int(m) if m == int(m) else m for m in config.layer_structure],
        "activation_func": config.activation,
        "is_layer_norm": config.layer_norm,
        "weight_initialization": WEIGHT_INIT_NAMES[config.weight_init],
        "sd_checkpoint": config.base_model_hash,
        "sd_checkpoint_name": config.base_model_name,
        "activate_output": config.activate_output,
        "use_dropout": dropout is not None and any(dropout),
        "dropout_structure": None if dropout is None else list(dropout),
        "last_layer_dropout": dropout is not None and len(dropout) > 2 and dropout[-2] > 0,  # of the last inner layer
        "optional_info": config.optional_info,
    }
    if config.skip_connection is not None:
        fields |= {"skip_connection": True, "upsample_linear": UPSAMPLE_LINEAR[config.skip_connection]}
    return fields


def _plain_state_dict(module: nn.Module, dtype: torch.dtype | None) -> OrderedDict[str, torch.Tensor]:
    """Return contiguous CPU tensors that own their storage: the WebUI's unpickler accepts no others."""
    tensors = module.state_dict().items()
    return OrderedDict((name, tensor.detach().cpu().to(dtype or tensor.dtype, copy=True)) for name, tensor in tensors)


def load_webui(path: str | Path) -> Hypernetwork:
    """Read a WebUI `.pt` of any age, in float32 and evaluation mode.

    Missing fields get the WebUI's defaults; the name is the file's stem.

    Raises:
        NotAHypernetwork: if the file is not a hypernetwork, or holds anything besides plain data.
    """
    return build_webui(path, read_webui(path))


def read_webui(path: str | Path) -> dict:
    """Return the content of a WebUI `.pt`, types checked: fields by name, pairs of state dicts by width.

    Raises:
        NotAHypernetwork: if the file is not a hypernetwork, or holds anything besides plain data.
    """
    if Path(path).suffix.lower() == ".hns":
        raise NotAHypernetwork(f"{path}: it combines other hypernetworks, only to generate images; name one of them")
    data: Any = read_plain(path, lambda content: _check_widths(path, content))
    for key, value in data.items():
        if problem := _problem(key, value):
            raise NotAHypernetwork(f"{path}: it is not a hypernetwork, or it is damaged ({problem})")
    return data


def _check_widths(path: str | Path, content: Any) -> None:
    """Raise NotAHypernetwork if the file has no widths, before gigabytes of a model are loaded by mistake."""
    if not isinstance(content, dict) or not any(type(key) is int for key in content):
        dicts = [content, *content.values()] if isinstance(content, dict) else []
        kind = kind_of(key for entry in dicts if isinstance(entry, dict) for key in entry if isinstance(key, str))
        problem = f"but {kind}" if kind else "(it has no widths such as 320 or 768)"
        raise NotAHypernetwork(f"{path}: it is not a hypernetwork {problem}")


def _problem(key: Any, value: Any) -> str | None:
    """Return what is wrong with an entry of the file, or None. The message quotes nothing from the file."""
    if type(key) is int:
        return _pair_problem(key, value)
    if key not in FIELDS or value is None:
        return None
    expected, found = FIELDS[key], type(value)
    if expected is list:
        is_numbers = found in (list, tuple) and all(type(item) in (int, float) for item in value)
        return None if is_numbers else f"{key} is not a list of numbers"
    if found is not expected and not (expected is bool and found is int and value in (0, 1)):
        return f"{key} has the type {found.__name__}, not {expected.__name__}"
    return f"{key} is out of range" if expected is int and not 0 <= value < 2**63 else None


def _pair_problem(width: int, pair: Any) -> str | None:
    is_pair = type(pair) in (tuple, list) and len(pair) == 2 and all(isinstance(part, dict) for part in pair)
    if width < 1 or not is_pair or not all(isinstance(name, str) for part in pair for name in part):
        return f"width {width} has no pair of modules"
    tensors = [tensor for part in pair for tensor in part.values()]
    if not all(isinstance(tensor, torch.Tensor) and tensor.dtype in FLOATS for tensor in tensors):
        return f"width {width} has weights that are not floating-point tensors"
    return None


def build_webui(path: str | Path, data: dict) -> Hypernetwork:
    """Build the hypernetwork from what `read_webui` returned for `path`.

    Raises:
        NotAHypernetwork: if the structure is impossible, or the weights do not fit it.
    """
    structure = data.get("layer_structure") or [1, 2, 1]
    activation = (data.get("activation_func") or "linear").lower()
    if activation not in ACTIVATIONS:
        raise NotAHypernetwork(f"{path}: its activation {activation[:40]!r} is unknown")
    inits = {theirs: ours for ours, theirs in WEIGHT_INIT_NAMES.items() if ours != "zero"}
    config: dict[str, Any] = {
        "widths": [key for key in data if type(key) is int],
        "layer_structure": list(structure),
        "activation": activation,
        "weight_init": inits.get(data.get("weight_initialization") or "Normal", "normal"),
        "layer_norm": bool(data.get("is_layer_norm")),
        "activate_output": bool(data.get("activate_output", True)),  # None is False, as in the WebUI
        "dropout_structure": _dropout_structure(data, len(structure)),
        "name": Path(path).stem,
        "step": data.get("step") or 0,
        "base_model_name": data.get("sd_checkpoint_name"),
        "base_model_hash": data.get("sd_checkpoint"),
        "optional_info": data.get("optional_info"),
        "skip_connection": find_skip_connection(data),
    }
    weights = {
        f"pairs.{width}.{part}.{_current_name(name)}": tensor
        for width in config["widths"]
        for part, state_dict in zip(("k", "v"), data[width])
        for name, tensor in state_dict.items()
    }
    try:
        return build_from_weights(config, weights)
    except ValueError as error:
        raise NotAHypernetwork(f"{path}: its weights do not fit its declared structure: {error}") from None


def find_skip_connection(data: dict) -> str | None:
    """Return the `skip_connection` of a hypernetwork: its weights show it even where the field is missing."""
    names = [name for key in data if type(key) is int for part in data[key] for name in part]
    if any(".upsample_layer." in name for name in names):
        return "linear"
    return "nearest" if data.get("skip_connection") or any(".linear." in name for name in names) else None


def _dropout_structure(data: dict, length: int) -> list[float] | None:
    """Return the dropout structure. Old files have flags instead: 0.3 on inner layers, on the last only if flagged."""
    if data.get("dropout_structure") is not None:
        return list(data["dropout_structure"])[:length]  # the WebUI ignores further entries
    if not data.get("use_dropout", False):
        return None
    last = 0.3 if data.get("last_layer_dropout", False) else 0.0
    return [0.0, *[0.3] * (length - 3), last, 0.0]


def _current_name(name: str) -> str:
    first, _, rest = name.partition(".")
    return f"{OLD_LAYER_NAMES[first]}.{rest}" if first in OLD_LAYER_NAMES else name
