"""torch.compile for the training step: the UNet with the hypernetwork on it as one graph, and trusted only when tried."""

import warnings

import torch

from hypernet.conditions import cast
from hypernet.errors import UserError

MOST_SHAPES = 32  # of batches: each is compiled for itself, which takes minutes
OPTIONS = {"layout_optimization": False, "fallback_random": True}  # convolutions as they lie; dropout as it is without
BACKEND = "inductor"
TOLERANCE = 0.1  # relative, for each width; half precision may differ by some hundredths


def memory_format(device: torch.device, compiled: bool) -> torch.memory_format:
    """How the UNet's weights are to lie: channels_last, which convolutions like, but on a CPU not where they are compiled.

    There inductor gives a UNet no gradients below its upsamplers then (seen with torch 2.13).
    """
    return torch.contiguous_format if compiled and device.type == "cpu" else torch.channels_last


def check_compiler(device: torch.device):
    """Compile a few numbers' worth.

    Raises:
        UserError: if torch.compile does not work here (no C++ compiler, say, or no Triton).
    """
    weight = torch.ones(4, requires_grad=True, device=device)
    try:
        torch.compile(lambda x: (x * x).sin(), backend=BACKEND)(weight).sum().backward()
    except Exception as error:  # each backend has its own kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--compile: torch.compile does not work here ({reason}); leave it out") from None


def check_shapes(shapes: int):
    """Raises: UserError if there are more shapes of batches than anyone would wait for."""
    if shapes > MOST_SHAPES:
        problem = f"images come in batches of {shapes} shapes, and each would take minutes"
        raise UserError(f"--compile: {problem}; train at one size, or with --aspect_buckets, or leave it out")


def compile_model(model, shapes: int, accelerator):
    """Let a `HypernetworkUNet`, when called, run as one graph for each shape of a batch; what it holds stays as it is.

    Previews and held-out losses, which call the UNet itself, are not compiled.
    """
    each = "" if shapes == 1 else f"; {shapes} shapes of batches, each when it first comes"
    accelerator.print(f"Compiling the training step, which takes some minutes{each}")
    warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # of diffusers
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * MOST_SHAPES)
    torch._dynamo.config.accumulated_recompile_limit = 8 * MOST_SHAPES
    model.compile(backend=BACKEND, dynamic=False, options=OPTIONS if BACKEND == "inductor" else None)


def check_compiled(model, scheduler, dataset, batch, dtype: torch.dtype, device: torch.device):
    """Compile for a batch, and hold the gradients against those of the plain model.

    Raises:
        UserError: if they differ by more than the noise of half precision: torch.compile has had such errors.
    """
    drawn = dataset.__getitems__(batch)
    timesteps = drawn["timesteps"].to(device)
    noise = drawn["noise"].to(device)
    noisy = scheduler.add_noise(drawn["latents"].to(device), noise, timesteps).to(dtype)
    given = cast(dataset.conditions(drawn), device, dtype)

    def gradients(forward):
        torch.manual_seed(0)  # of dropout
        loss = (forward(noisy, timesteps, **given).float() - noise).square().mean()
        (1024 * loss).backward()  # or float16 would lose them
        found = {}
        for name, weight in model.hypernetwork.named_parameters():
            found.setdefault(int(name.split(".")[1]), []).append(weight.grad.flatten())
            weight.grad = None
        return {width: torch.cat(parts) for width, parts in found.items()}

    plain, compiled = gradients(model.forward), gradients(model)
    largest = max(part.norm() for part in plain.values())
    for width, expected in plain.items():
        difference = ((compiled[width] - expected).norm() / max(expected.norm(), 1e-3 * largest)).item()
        if largest.isfinite() and largest > 0 and not difference <= TOLERANCE:
            problem = f"the gradients of width {width} differ by {difference:.0%} from those that are not compiled"
            raise UserError(
                f"--compile: {problem}; leave it out (torch {torch.__version__} compiles this model wrongly)"
            )
