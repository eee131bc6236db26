"""What WebUI files may hold, and files as the WebUI wrote them in its first weeks."""

import pickletools

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
