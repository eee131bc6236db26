"""Build a hypernetwork from existing weights, such as those of an untrusted file."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from hypernet.modeling.hypernetwork import WIDTHS_SD1, Hypernetwork, constructor_arguments

REQUIRED_STRINGS = ("activation", "weight_init", "layer_norm_init", "name")  # the other strings may be None


def build_from_weights(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Hypernetwork:
    """Return the hypernetwork that `config` describes with the given weights, in float32 and evaluation mode.

    Allocates memory only for the given weights, whatever sizes the config declares, and uses no random numbers. The
    result's `stored_dtype` is the dtype of the given weights, or float32 if they have several.

    Args:
        config: constructor arguments of `Hypernetwork`.
        weights: tensors by their names in its state dict.

    Raises:
        ValueError: if the structure is impossible or the weights do not fit it; the message is one line.
    """
    _check_types(config)
    hypernetwork = _build_on_meta(config, len(weights))
    expected = {name: tuple(tensor.shape) for name, tensor in hypernetwork.state_dict().items()}
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'unexpected'} in this structure")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name} has shape {list(weights[name].shape)}; its structure needs {list(shape)}")
    plain = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in weights.items()}
    hypernetwork.load_state_dict(plain, assign=True)
    dtypes = {tensor.dtype for tensor in weights.values()}
    hypernetwork.stored_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return hypernetwork.eval()


def without_dropout(hypernetwork: Hypernetwork) -> Hypernetwork:
    """Return a copy without Dropout layers, for inference. The remaining layers are renumbered."""
    config = {**constructor_arguments(hypernetwork.config), "dropout_structure": None}
    with torch.device("meta"):
        names = list(Hypernetwork(**config).state_dict())
    return build_from_weights(config, dict(zip(names, hypernetwork.state_dict().values())))


def _check_types(config: Mapping[str, Any]) -> None:
    """Raise ValueError for a constructor argument of the wrong type; files can hold anything."""
    for key, value in config.items():
        if key == "widths":
            valid = _are_numbers(value, int) and len(set(value)) == len(value) > 0 and min(value) > 0
        elif key == "layer_structure" or key == "dropout_structure" and value is not None:
            valid = _are_numbers(value, int, float)
        elif key in ("layer_norm", "activate_output"):
            valid = type(value) is bool
        elif key == "step":
            valid = type(value) is int and 0 <= value < 1 << 63
        else:
            valid = type(value) is str or value is None and key not in REQUIRED_STRINGS
        if not valid:
            raise ValueError(f"{str(key)[:40]!r} has an invalid value")


def _are_numbers(value: Any, *types: type) -> bool:
    """Return whether this is a list or tuple of finite numbers of exactly these types: a bool is not an int."""
    # no math.isfinite: an int too large for a float overflows it
    return type(value) in (list, tuple) and all(type(number) in types and abs(number) < math.inf for number in value)


def _build_on_meta(config: Mapping[str, Any], tensor_count: int) -> Hypernetwork:
    """Return the hypernetwork on the meta device, where its weights take no memory.

    Raises:
        ValueError: if it cannot be built, or would have more than `tensor_count` tensors.
    """
    widths, structure = config.get("widths", WIDTHS_SD1), config.get("layer_structure", (1, 2, 1))
    if len(widths) * 2 * (len(structure) - 1) > tensor_count:
        raise ValueError(f"{tensor_count} tensors are too few for its structure")
    try:
        with torch.device("meta"):
            return Hypernetwork(**config)
    except (TypeError, OverflowError, RuntimeError, KeyError) as error:
        raise ValueError(f"its structure cannot be built ({' '.join(str(error).split())[:200]})") from None
