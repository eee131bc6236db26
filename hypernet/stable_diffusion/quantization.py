"""Keep the attention blocks of the frozen UNet in 4 or 8 bits, for GPUs too small for half precision."""

import torch
import torch.nn.functional as F
from torch import nn

from hypernet.config import Quantization

BLOCK = 64  # weights that share a scale in nf4


def quantize(unet: nn.Module, kind: Quantization, dtype: torch.dtype, device: torch.device | str) -> None:
    """Replace the linear layers of the attention blocks by quantized ones on `device`.

    Convolutions, norms and timestep embeddings are neither changed nor moved.

    Args:
        kind: "nf4", the 4-bit format of QLoRA (Dettmers et al. 2023), or "int8" with a scale per row, as LLM.int8()
            stores weights (Dettmers et al. 2022).
        dtype: precision of the matrix products.
    """
    for name, layer in _attention_linears(unet):
        unet.set_submodule(name, QuantizedLinear(layer, kind, dtype, device))


def _attention_linears(unet: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [
        (name, layer) for name, layer in unet.named_modules() if ".attentions." in name and type(layer) is nn.Linear
    ]


class QuantizedLinear(nn.Module):
    """A frozen Linear that dequantizes its weight anew in forward and backward.

    bitsandbytes' own layers, which diffusers' BitsAndBytesConfig uses too, do not fit. Linear8bitLt also rounds its
    input, and keeps it for the backward pass even under gradient checkpointing. Linear4bit in evaluation mode repacks
    its weight on CPUs with AVX512-BF16 and then passes no gradients on; it returns float32 under autocast.
    """

    def __init__(self, layer: nn.Linear, kind: Quantization, dtype: torch.dtype, device: torch.device | str):
        super().__init__()
        from bitsandbytes.functional import int8_vectorwise_quant, quantize_4bit  # slow to import

        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        weight = layer.weight.data.to(device)
        if kind == "nf4":
            packed, state = quantize_4bit(weight, blocksize=BLOCK, quant_type="nf4")
            scales = state.absmax
        else:
            packed, scales, _ = int8_vectorwise_quant(weight.half())
        # not buffers: distributed training would broadcast those at each step
        self.packed, self.scales = (nn.Parameter(part, requires_grad=False) for part in (packed, scales))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(device), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., in_features) -> (..., out_features)
        shape = (self.out_features, self.in_features)
        product = _Product.apply(x.to(self.dtype), self.packed, self.scales, shape)
        return product if self.bias is None else product + self.bias.to(self.dtype)


def _dequantize(
    packed: torch.Tensor, scales: torch.Tensor, shape: tuple[int, int], dtype: torch.dtype
) -> torch.Tensor:  # (out_features, in_features)
    if packed.dtype is torch.int8:
        return packed.to(dtype).mul_((scales / 127)[:, None])
    from bitsandbytes.functional import QuantState, dequantize_4bit

    state = QuantState(scales, shape=torch.Size(shape), dtype=dtype, blocksize=BLOCK, quant_type="nf4")
    return dequantize_4bit(packed, state)


class _Product(torch.autograd.Function):
    """x W^T, which saves only the quantized weight for the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: torch.Tensor,
        packed: torch.Tensor,
        scales: torch.Tensor,
        shape: tuple[int, int],
    ) -> torch.Tensor:
        ctx.save_for_backward(packed, scales)
        ctx.shape = shape
        return F.linear(x, _dequantize(packed, scales, shape, x.dtype))

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        packed, scales = ctx.saved_tensors
        return gradient @ _dequantize(packed, scales, ctx.shape, gradient.dtype), None, None, None


def weight_bytes(unet: nn.Module, kind: Quantization | None, dtype: torch.dtype) -> int:
    """Return the bytes of a UNet's weights once quantized. Only shapes count, so a UNet on the meta device will do.

    nf4 takes half a byte per weight and four per block of 64; int8 a byte per weight and four per row.
    """
    size, total = dtype.itemsize, sum(parameter.numel() for parameter in unet.parameters())
    layers = [layer.weight.shape for _, layer in _attention_linears(unet)] if kind else []
    weights = sum(rows * columns for rows, columns in layers)
    per_weight = {"nf4": 1 / 2 + 4 / BLOCK, "int8": 1.0, None: size}[kind]
    scales = 4 * sum(rows for rows, _ in layers) if kind == "int8" else 0
    return round((total - weights) * size + weights * per_weight + scales)
