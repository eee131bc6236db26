"""Count the peak memory of a computation without running it, on fake tensors: shapes without data."""

import contextlib
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Bytes of the optimizer's state per byte of the weights, which are float32: AdamW keeps two moments of them, bitsandbytes'
# AdamW8bit a byte each, and four per block of 256
ADAMW_STATE, ADAMW_8BIT_STATE = 2.0, 0.508


class PeakMemory(TorchDispatchMode):
    """Count the bytes of all live storages.

    That is what a GPU's allocator is asked for, without its rounding, the workspaces of libraries and CUDA's own share.

    Attributes:
        now: bytes held.
        peak: the most bytes held at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self.now

    def __torch_dispatch__(
        self, function: Callable, types: Iterable[type], args: Sequence = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                size = self._known[storage] = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, size)
        return result

    def _free(self, size: int) -> None:
        self.now -= size


@contextlib.contextmanager
def count_peak_memory() -> Iterator[PeakMemory]:
    """Make all tensors created in the `with` block fake, and count their memory."""
    with FakeTensorMode(), PeakMemory() as memory:
        yield memory


def compute_norms_in_float32(module: torch.nn.Module) -> None:
    """Make GroupNorm and LayerNorm compute in float32, as autocast does on a GPU but not on a CPU."""

    def group_norm(self: torch.nn.GroupNorm, x: torch.Tensor) -> torch.Tensor:
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)

    def layer_norm(self: torch.nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)

    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = types.MethodType(group_norm, part)
        elif isinstance(part, torch.nn.LayerNorm):
            part.forward = types.MethodType(layer_norm, part)


class FakeOptimizer:
    """The memory of an optimizer, some of which cannot be built on fake tensors.

    Args:
        state_ratio: bytes of its state per byte of the weights, such as `ADAMW_STATE`.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], state_ratio: float):
        self.parameters = list(parameters)
        size = sum(weight.numel() * weight.element_size() for weight in self.parameters)
        device = self.parameters[0].device
        self.state = torch.empty(round(state_ratio * size), dtype=torch.uint8, device=device)

    def step(self) -> None:
        """Do nothing: an update allocates no memory."""

    def zero_grad(self) -> None:
        """Free the gradients."""
        for weight in self.parameters:
            weight.grad = None
