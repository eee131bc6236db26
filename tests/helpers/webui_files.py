"""What WebUI files may hold, and files as the WebUI wrote them in its first weeks."""

import pickletools
from collections import OrderedDict

import torch

from hypernet import Hypernetwork

ALLOWED_GLOBALS = {  # accepted by the WebUI's restricted unpickler, and found in such a file
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
}


def globals_of(path):
    """Return every class or function named in the pickles of a legacy file: five, then the tensors' bytes."""
    names = set()
    with open(path, "rb") as file:
        for _ in range(5):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                    names.add(argument)
    return names


def save_old_webui(path, width=12, **fields):
    """Write a file as the WebUI of October 2022 did, but with today's torch; return its modules by part."""
    modules = Hypernetwork((width,), layer_structure=fields.get("layer_structure", (1, 2, 1))).pairs[str(width)]
    names = {"linear.0": "linear1", "linear.1": "linear2"}
    data = {width: tuple({names[n[:8]] + n[8:]: t for n, t in modules[p].state_dict().items()} for p in ("k", "v"))}
    torch.save({**data, **fields}, path)
    return modules


def save_residual(path, widths=(12,), structure=(1, 2, 1), upsample=None, norm=False, **fields):
    """Write a residual hypernetwork as the Hypernetwork-MonkeyPatch-Extension does; return what it holds."""

    def module(width):
        weights, sizes = OrderedDict(), [int(width * multiple) for multiple in structure]
        for i, (before, after) in enumerate(zip(sizes, sizes[1:])):
            if upsample == "Linear":
                weights[f"linear.{i}.upsample_layer.weight"] = torch.randn(after, before) / before**0.5
            weights[f"linear.{i}.linear.0.weight"] = torch.randn(after, before) / before**0.5
            weights[f"linear.{i}.linear.0.bias"] = torch.randn(after) / 4
            if norm:
                weights |= {f"linear.{i}.linear.1.{name}": torch.randn(after) for name in ("weight", "bias")}
        return weights

    data = {width: (module(width), module(width)) for width in widths} | {
        "step": 1000,
        "name": path.stem,
        "layer_structure": list(structure),
        "activation_func": "linear",
        "is_layer_norm": norm,
        "weight_initialization": "Normal",
        "sd_checkpoint": "abcdef1234",
        "sd_checkpoint_name": "model",
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": [0] * len(structure),
        "last_layer_dropout": False,
        "optional_info": None,
        "skip_connection": True,
        "upsample_linear": upsample,
    }
    data |= fields
    torch.save(data, path)
    return data
