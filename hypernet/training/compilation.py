"""torch.compile for the training step: the UNet and the hypernetwork as one graph."""

import warnings

import torch

from hypernet.utils.errors import UserError

MAX_SHAPES = 32  # of batches; each takes minutes to compile
BACKEND = "inductor"
OPTIONS = {"layout_optimization": False, "fallback_random": True}  # keep the memory layout; dropout as in eager mode


def memory_format(device: torch.device, compiled: bool) -> torch.memory_format:
    """Return the memory format of the UNet's weights: channels_last, which suits convolutions.

    Compiled code on a CPU gets contiguous weights: with channels_last, inductor loses the gradients below a UNet's
    upsamplers (torch 2.13).
    """
    return torch.contiguous_format if compiled and device.type == "cpu" else torch.channels_last


def check_compiler(device: torch.device) -> None:
    """Compile a tiny function, forward and backward.

    Raises:
        UserError: if torch.compile does not work here (no C++ compiler or no Triton, for example).
    """
    weight = torch.ones(4, requires_grad=True, device=device)
    try:
        torch.compile(lambda x: (x * x).sin(), backend=BACKEND)(weight).sum().backward()
    except Exception as error:  # every backend raises its own kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None


def check_shapes(shapes: int) -> None:
    """Raise UserError if there are too many batch shapes to compile in reasonable time."""
    if shapes > MAX_SHAPES:
        problem = f"batches come in {shapes} shapes, and each would take minutes to compile"
        raise UserError(f"--compile: {problem}; train at one size, use --aspect_buckets, or leave it out")


def compile_model(model: torch.nn.Module) -> None:
    """Compile calls of `model`, once per batch shape. Previews and validation, which call its UNet, stay eager."""
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # in diffusers
    config = torch._dynamo.config
    config.recompile_limit = max(config.recompile_limit, 4 * MAX_SHAPES)
    model.compile(backend=BACKEND, dynamic=False, options=OPTIONS if BACKEND == "inductor" else None)
