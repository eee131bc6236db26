"""The AUTOMATIC1111 WebUI's `.pt` file: read it without running code, write it so that every version loads it."""

import pickle
import warnings
from collections import OrderedDict
from pathlib import Path

import torch

from hypernet.errors import UserError
from hypernet.network import ACTIVATIONS, Hypernetwork
from hypernet.replacing import replacing

WEIGHT_INIT_NAMES = {  # ours -> the WebUI's; it has no zero start, and none is needed once there are weights
    "normal": "Normal",
    "xavier_uniform": "XavierUniform",
    "xavier_normal": "XavierNormal",
    "kaiming_uniform": "KaimingUniform",
    "kaiming_normal": "KaimingNormal",
    "zero": "Normal",
}
COMFYUI_ACTIVATIONS = ("linear", "relu", "leakyrelu", "elu", "swish", "tanh", "sigmoid", "softsign", "mish")
OLD_LAYER_NAMES = {"linear1": "linear.0", "linear2": "linear.1"}  # files of the first weeks of October 2022


class NotAHypernetwork(UserError):
    """The file cannot be read as a hypernetwork. The message is one line: the file and what is wrong with it."""


def save_webui(hypernetwork: Hypernetwork, path):
    """Write a WebUI `.pt`: the legacy serialisation, which passes the file check of every WebUI version.

    The file's `name` field is the file's stem, because the WebUI caches a hypernetwork under the one and looks for it
    under the other.
    """
    path, config = Path(path), hypernetwork.config
    dropout = config.dropout_structure
    data = {
        "step": config.step,
        "name": path.stem,
        "layer_structure": [int(m) if m == int(m) else m for m in config.layer_structure],
        "activation_func": config.activation,
        "is_layer_norm": config.layer_norm,
        "weight_initialization": WEIGHT_INIT_NAMES[config.weight_init],
        "sd_checkpoint": config.base_model_hash,
        "sd_checkpoint_name": config.base_model_name,
        "activate_output": config.activate_output,
        "use_dropout": dropout is not None and any(dropout),
        "dropout_structure": None if dropout is None else list(dropout),
        "last_layer_dropout": dropout is not None and len(dropout) > 2 and dropout[-2] > 0,
        "optional_info": None,
    }
    for width, pair in hypernetwork.pairs.items():
        data[int(width)] = tuple(_plain_state_dict(pair[part]) for part in ("k", "v"))
    with replacing(path) as temporary:
        torch.save(data, temporary, _use_new_zipfile_serialization=False)


def comfyui_reads(hypernetwork: Hypernetwork) -> bool:
    """Whether ComfyUI draws with the file what the WebUI does.

    It knows few activations, leaves dropout active, and with a LayerNorm and an activation activates the output, too.
    """
    config = hypernetwork.config
    dropout = config.dropout_structure is not None and any(config.dropout_structure)
    return (
        config.activation in COMFYUI_ACTIVATIONS
        and not dropout
        and not (config.layer_norm and config.activation != "linear")
    )


def _plain_state_dict(module):
    """Name -> contiguous CPU tensor that owns its storage, and nothing else: the WebUI's unpickler allows no more."""
    return OrderedDict((name, tensor.detach().cpu().clone()) for name, tensor in module.state_dict().items())


def load_webui(path) -> Hypernetwork:
    """Read a WebUI `.pt` of any age; missing fields have the WebUI's defaults, the name is the file's stem.

    Raises:
        NotAHypernetwork: for everything that is not a hypernetwork, or holds anything besides plain data.
    """
    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols: what cannot be read is refused below
            data = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError):
        problem = "it is no hypernetwork file, or a damaged one (whatever is in it, nothing of it was run)"
        raise NotAHypernetwork(f"{path}: {problem}") from None
    if not isinstance(data, dict) or not any(isinstance(key, int) for key in data):
        raise NotAHypernetwork(f"{path}: it is no hypernetwork (no widths such as 320 or 768 in it)")
    return _build(path, data)


def _build(path, data):
    structure = data.get("layer_structure") or [1, 2, 1]
    activation = str(data.get("activation_func") or "linear").lower()
    if activation not in ACTIVATIONS:
        raise NotAHypernetwork(f"{path}: its activation {activation!r} is unknown")
    weight_init = data.get("weight_initialization") or "Normal"
    widths = sorted(key for key in data if isinstance(key, int))
    try:
        hypernetwork = Hypernetwork(
            widths=widths,
            layer_structure=list(structure),
            activation=activation,
            weight_init=next((ours for ours, theirs in WEIGHT_INIT_NAMES.items() if theirs == weight_init), "normal"),
            layer_norm=bool(data.get("is_layer_norm", False)),
            activate_output=bool(data.get("activate_output", True)),
            dropout_structure=_dropout_structure(data, len(structure)),
            name=path.stem,
            step=int(data.get("step") or 0),
            base_model_name=data.get("sd_checkpoint_name"),
            base_model_hash=data.get("sd_checkpoint"),
        )
        for width in widths:
            for part, state_dict in zip(("k", "v"), data[width], strict=True):
                hypernetwork.pairs[str(width)][part].load_state_dict(_current_names(state_dict))
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise NotAHypernetwork(f"{path}: its weights do not fit its declared structure: {reason}") from None
    return hypernetwork.eval()


def _dropout_structure(data, length):
    """The dropout structure; old files have flags instead: 0, 0.3 inside, the last inner one if flagged, 0."""
    if data.get("dropout_structure") is not None:
        return list(data["dropout_structure"])
    if not data.get("use_dropout", False):
        return None
    last = 0.3 if data.get("last_layer_dropout", False) else 0.0
    return [0.0, *[0.3] * (length - 3), last, 0.0]


def _current_names(state_dict):
    renamed = {}
    for name, tensor in state_dict.items():
        first, _, rest = name.partition(".")
        renamed[f"{OLD_LAYER_NAMES[first]}.{rest}" if first in OLD_LAYER_NAMES else name] = tensor
    return renamed
