"""torch.compile for the training step: the UNet with the hypernetwork on it as one graph, and trusted only when tried."""

import time
import warnings

import torch

from hypernet.utils.errors import UserError

MOST_SHAPES = 32  # of batches: each is compiled for itself, which takes minutes
OPTIONS = {
    "layout_optimization": False,
    "fallback_random": True,
}  # convolutions as they lie; dropout as without compiling
BACKEND = "inductor"
LEAST_COSINE, LEAST_NORM = (
    0.9,
    1e-4,
)  # what differs more has another cause than rounding; what is smaller is mostly that


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


class Compiled:
    """A `HypernetworkUNet` that runs, when called, as one graph for each shape of a batch; what it holds stays as it is.

    Previews and held-out losses, which call the UNet itself, are not compiled.
    """

    def __init__(self, model, accelerator):
        self.model, self.accelerator, self.met = model, accelerator, set()
        warnings.filterwarnings("ignore", message="Dynamo detected a call to a `functools.lru_cache`")  # of diffusers
        config = torch._dynamo.config
        config.recompile_limit = max(config.recompile_limit, 4 * MOST_SHAPES)
        model.compile(backend=BACKEND, dynamic=False, options=OPTIONS if BACKEND == "inductor" else None)

    def meet(self, noisy_latents, timesteps, given: dict):
        """Compile for batches of this shape, unless that has been done, and hold the gradients against the plain ones.

        Raises:
            UserError: if they differ by more than rounding: torch.compile has had such errors.
        """
        text = given["encoder_hidden_states"]
        shape = (tuple(noisy_latents.shape), tuple(text.shape), "encoder_attention_mask" in given)
        if shape in self.met:
            return
        self.met.add(shape)
        size = "x".join(str(8 * side) for side in reversed(shape[0][2:]))
        batch = f"batches of {len(text)} at {size}, {text.shape[1]} tokens{' and fewer' if shape[2] else ''}"
        self.accelerator.print(f"\nCompiling for {batch}, which takes some minutes", flush=True)
        started = time.monotonic()
        inputs = (noisy_latents, timesteps), given
        # model.forward is not compiled, model(...) is
        problem = _difference(self._gradients(self.model.forward, *inputs), self._gradients(self.model, *inputs))
        if problem:
            raise UserError(
                f"--compile: {problem}; leave it out (torch {torch.__version__} compiles this model wrongly)"
            )
        self.accelerator.print(f"Compiled in {time.monotonic() - started:.0f} s, gradients as without", flush=True)

    def _gradients(self, forward, args, given) -> dict[int, torch.Tensor]:
        """Width -> the gradient of its parameters in one. What has been accumulated, and random numbers, stay as they are."""
        weights = dict(self.model.hypernetwork.named_parameters())
        device = args[0].device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(0)  # of dropout
            loss = 1024 * forward(*args, **given).float().square().mean()  # or float16 would lose the gradients
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
        found = {}
        for name, gradient in zip(weights, gradients):
            if gradient is not None:
                found.setdefault(int(name.split(".")[1]), []).append(gradient.flatten())
        return {width: torch.cat(parts) for width, parts in found.items()}


def _difference(plain: dict, compiled: dict) -> str | None:
    """What is wrong with the compiled gradients."""
    largest = max(part.norm() for part in plain.values())
    for width, expected in plain.items():
        cosine = torch.cosine_similarity(expected, compiled[width], dim=0).item()
        times = (compiled[width].norm() / expected.norm()).item()
        same = cosine >= LEAST_COSINE and 1 / 2 < times < 2
        if expected.norm() > LEAST_NORM * largest and not same:
            how = f"cosine {cosine:.2f}, {times:.2g} times its size"
            return f"of width {width} the compiled gradient is not the plain one ({how})"
    return None if largest.isfinite() else "the gradients are not finite, so that they cannot be compared"
