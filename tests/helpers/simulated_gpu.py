"""A simulated CUDA GPU: tensors that are on "cuda:0" for Python code, and whose arithmetic the CPU does.

PyTorch's FakeTensorMode cannot stand in for a GPU here: its tensors have no values, so a run ends at its first `.item()`,
and a PyTorch without CUDA aborts when it records gradients of tensors on "cuda" (2.13). With these tensors whole runs
work, with saved files and images, and can be compared with runs on the CPU. As on a GPU, tensors of both devices cannot be
mixed, autocast computes norms in float32, and the CPU waits for some operations, which are recorded.

It does not simulate CUDA's own kernels, pinned memory, or memory that runs out.
"""

import contextlib
import dataclasses
import os
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.nn import Parameter
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda", 0)
REPO = str(Path(__file__).parents[2])
aten = torch.ops.aten
MOVING = {Tensor.to, Tensor.cpu, Tensor.cuda}
# May have arguments on both devices
COPYING = {Tensor.copy_, Tensor.__setitem__}
LINKING = {Tensor.grad.__set__, torch._has_compatible_shallow_copy_type}
# CUDA's autocast computes these in float32, a CPU's in half precision
IN_FLOAT32 = {F.layer_norm, F.group_norm, F.softmax, torch.softmax, Tensor.softmax, torch.exp, Tensor.exp}
IN_FLOAT32 |= {torch.pow, Tensor.pow, torch.sum, Tensor.sum, torch.norm, Tensor.norm, F.mse_loss}
# The CPU waits for these: their value, or the size of their result
WAITING = {aten._local_scalar_dense, aten.equal, aten.nonzero, aten.masked_select, aten.bincount}
WAITING |= {aten.repeat_interleave, aten._unique2, aten.unique_dim, aten.unique_consecutive}
BACKWARD = {"allow_unreachable": True, "accumulate_grad": True}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class GpuTensor(Tensor):
    """A tensor on the simulated GPU."""

    device = property(lambda self: DEVICE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    def __reduce_ex__(self, protocol: int) -> Any:
        with torch._C.DisableTorchFunction():
            return self.detach().as_subclass(Tensor).__reduce_ex__(protocol)  # files hold plain tensors


@dataclasses.dataclass
class Wait:
    """A moment at which the CPU waits for the GPU.

    Attributes:
        what: the operation.
        where: files and functions of this repository that have led to it, the innermost first.
    """

    what: str
    where: list[str]


class SimulatedGpu(TorchFunctionMode):
    """Makes operations on tensors act as if there were a GPU.

    Attributes:
        waits: every time the CPU has waited for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if getattr(function, "__name__", "") == "__get__":  # an attribute, such as shape; most calls are for one
            value = function(*args)
            if isinstance(value, Tensor) and isinstance(args[0], GpuTensor):
                value.__class__ = GpuTensor
            return value
        kwargs = kwargs or {}
        tensors = list(_tensors([*args, *kwargs.values()]))
        gpu = [tensor for tensor in tensors if isinstance(tensor, GpuTensor)]
        if function in MOVING:
            return self._move(function, *args, **kwargs)
        makes = _is_gpu(kwargs.get("device"))
        if not gpu and not makes:
            return function(*args, **kwargs)
        if function == Tensor.data.__set__:  # as module.to("cuda") calls it
            return self._set_data(*args)
        if function is Tensor.backward:
            with self:  # checkpointing runs the model here
                return _engine_run_backward((args[0],), (torch.ones_like(args[0]),), False, False, (), **BACKWARD)
        cpu = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor)]
        if torch._C._current_graph_task_id() == -1:  # gradients are plain tensors in the backward pass
            self._check(function, args, kwargs, gpu, cpu)
        if makes:
            kwargs["device"] = "cpu"
        if function in IN_FLOAT32 and torch.is_autocast_enabled("cuda"):
            args = tuple(map(_in_float32, args))
            kwargs = {key: _in_float32(value) for key, value in kwargs.items()}
        result = function(*args, **kwargs)
        stays = kwargs.get("device") is not None and not makes
        for tensor in [] if stays else _tensors([result]):
            if not any(tensor is each for each in cpu):  # the result of an operation in place
                tensor.__class__ = GpuTensor
        return result

    def _check(self, function: Any, args: tuple, kwargs: dict, gpu: list[Tensor], cpu: list[Tensor]) -> None:
        """Raise RuntimeError where CUDA does; record copies that the CPU waits for."""
        if any(isinstance(each, torch.Generator) for each in [*args, *kwargs.values()]):
            raise RuntimeError(f"{function}: expected a 'cuda' device type for generator but found 'cpu'")
        if function in (Tensor.numpy, Tensor.__array__):
            raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()")
        if function is Tensor.tolist:
            self.wait(str(function))
        if not gpu or not cpu or function in LINKING:
            return
        on_gpu = isinstance(args[0], GpuTensor)
        if function in COPYING or (function is Tensor.__getitem__ and on_gpu):
            if not (on_gpu and kwargs.get("non_blocking")):
                self.wait(str(function))
            return
        if function is Tensor.__getitem__ and not any(tensor.ndim for tensor in gpu):
            return  # a single number, which is read
        name = getattr(function, "__name__", "")
        writes = name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor) and not on_gpu
        joins = name in ("stack", "cat")  # which do not even mix single numbers
        if writes or joins or any(tensor.ndim for tensor in cpu):
            raise RuntimeError(f"{function}: expected all tensors to be on the same device, but found cuda:0 and cpu")

    def _move(self, function: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Return the tensor on the device and in the precision that the arguments name."""
        was_gpu = isinstance(tensor, GpuTensor)
        named = [each for each in [*args, *kwargs.values()] if isinstance(each, str | torch.device | Tensor)]
        devices = [each.device if isinstance(each, Tensor) else torch.device(each) for each in named]
        devices += [torch.device("cpu")] if function is Tensor.cpu else [DEVICE] if function is Tensor.cuda else []
        to_gpu = _is_gpu(devices[0]) if devices else was_gpu

        def as_cpu(value: Any) -> Any:
            return torch.device("cpu") if isinstance(value, str | torch.device) and _is_gpu(value) else value

        kwargs = {key: as_cpu(value) for key, value in kwargs.items()}
        if to_gpu == was_gpu:
            moved = tensor if function is not Tensor.to else tensor.to(*map(as_cpu, args), **kwargs)
        elif function is Tensor.to:
            moved = tensor.to(*map(as_cpu, args), **{**kwargs, "copy": True})
        else:
            moved = tensor.clone()
        if moved is not tensor:
            moved.__class__ = GpuTensor if to_gpu else Tensor
        if to_gpu != was_gpu and not (to_gpu and (kwargs.get("non_blocking") or any(each is True for each in args))):
            self.wait(str(function))
        return moved

    @staticmethod
    def _set_data(tensor: Tensor, data: Tensor) -> None:
        """Give a tensor other data, and its device."""
        tensor.data = data
        is_parameter, to_gpu = isinstance(tensor, Parameter), isinstance(data, GpuTensor)
        tensor.__class__ = GpuTensor if to_gpu else Parameter if is_parameter else Tensor
        tensor._is_param = is_parameter  # a parameter by `isinstance`

    def wait(self, what: str) -> None:
        """Record that the CPU waits for the GPU."""
        codes = [frame.f_code for frame, _ in traceback.walk_stack(None)]
        ours = [code for code in codes if code.co_filename.startswith(REPO) and code.co_filename != __file__]
        self.waits.append(Wait(what, [f"{os.path.basename(code.co_filename)} {code.co_name}" for code in ours]))


class Waits(TorchDispatchMode):
    """Records the operations that a CPU waits for, wherever they are called from."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        packet = function.overloadpacket
        if packet in WAITING and isinstance(args[0], GpuTensor):
            self.gpu.wait(str(function))
        if packet in INDEXING and isinstance(args[0], GpuTensor):
            if any(tensor.dtype is torch.bool for tensor in _tensors(args[1:2])):
                self.gpu.wait(str(function))
        return function(*args, **(kwargs or {}))


@contextlib.contextmanager
def simulated_gpu() -> Iterator[SimulatedGpu]:
    """Let this process have a GPU within the block."""
    gpu = SimulatedGpu()
    cuda = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda _: None,
        "get_device_name": lambda *_: "simulated GPU",
        "get_device_capability": lambda *_: (8, 0),
        "mem_get_info": lambda *_: (8 << 30, 8 << 30),
        "memory_reserved": lambda *_: 0,
        "max_memory_allocated": lambda *_: 0,
        "get_rng_state_all": list,
        "set_rng_state_all": lambda _: None,
        "synchronize": lambda *_: gpu.wait("synchronize"),
    }
    group = torch._C._group_tensors_by_device_and_dtype

    def grouped(lists: Any, with_indices: bool = False) -> Any:
        groups = group(lists, with_indices)
        firsts = {key: next(_tensors(value[0]), None) for key, value in groups.items()}
        return {(firsts[key].device, key[1]): value for key, value in groups.items()}

    try:
        with (
            mock.patch.multiple(torch.cuda, **cuda),
            mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped),
            # tensors that only PyTorch's core holds are on the CPU
            mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, default=lambda saved: saved.dtype),
            _cuda_autocast(),
            Waits(gpu),
            gpu,
        ):
            yield gpu
    finally:
        AcceleratorState._reset_state(True)


@contextlib.contextmanager
def _cuda_autocast() -> Iterator[None]:
    """Let autocast for "cuda" work on these tensors, which are on the CPU for PyTorch's core."""
    enter, leave = torch.autocast.__enter__, torch.autocast.__exit__
    on_cpu: list[torch.autocast] = []

    def enter_both(autocast: torch.autocast) -> Any:
        if autocast.device == "cuda":
            on_cpu.append(torch.autocast("cpu", autocast.fast_dtype, autocast._enabled, autocast._cache_enabled))
            enter(on_cpu[-1])
        return enter(autocast)

    def leave_both(autocast: torch.autocast, *error: Any) -> Any:
        result = leave(autocast, *error)
        if autocast.device == "cuda":
            leave(on_cpu.pop(), *error)
        return result

    with mock.patch.multiple(torch.autocast, __enter__=enter_both, __exit__=leave_both):
        yield


def _is_gpu(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _in_float32(value: Any) -> Any:
    is_half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if is_half else value


def _tensors(items: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors in nested lists and tuples."""
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, list | tuple):
            yield from _tensors(item)
