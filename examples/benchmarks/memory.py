"""What a computation would take of a device's memory, counted without the device: tensors of shapes alone."""

import contextlib
import types
import weakref

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that come and go: `now`, and at most at once, `peak`.

    That is what a GPU's allocator is asked for, without its rounding, the workspaces of libraries and CUDA's own share.
    """

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakKeyDictionary()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage() not in self.known:
                storage = tensor.untyped_storage()
                size = self.known[storage] = storage.nbytes()
                self.now += size
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, size)
        return result

    def _free(self, size):
        self.now -= size


@contextlib.contextmanager
def counted():
    """Tensors without memory, counted by the `PeakMemory` that it gives."""
    with FakeTensorMode(), PeakMemory() as memory:
        yield memory


def norms_as_on_a_gpu(module):
    """Let GroupNorm and LayerNorm compute in float32, as autocast has it on a GPU, and not on a CPU."""

    def group_norm(self, x):
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps)

    def layer_norm(self, x):
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)

    for part in module.modules():
        if isinstance(part, torch.nn.GroupNorm):
            part.forward = types.MethodType(group_norm, part)
        elif isinstance(part, torch.nn.LayerNorm):
            part.forward = types.MethodType(layer_norm, part)


class MomentsIn8Bits:
    """What bitsandbytes' AdamW8bit holds: two moments of a byte, and a float for 256 of each; small weights' are whole.

    It has the shapes only, since the optimizer itself cannot be built without memory.
    """

    def __init__(self, parameters):
        self.parameters, self.state = list(parameters), []
        for weight in self.parameters:
            if weight.numel() < 4096:
                self.state += [torch.zeros_like(weight), torch.zeros_like(weight)]
            else:
                self.state += [torch.zeros_like(weight, dtype=torch.uint8) for _ in range(2)]
                self.state += [torch.zeros(-(-weight.numel() // 256), device=weight.device) for _ in range(2)]

    def step(self):
        """Nothing that takes memory."""

    def zero_grad(self):
        for weight in self.parameters:
            weight.grad = None
