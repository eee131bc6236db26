"""The frozen UNet's attention blocks in 4 or 8 bits, through bitsandbytes, for cards on which half precision is too large."""

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 64  # numbers that share a scale in nf4


def quantize(unet, kind: str, dtype: torch.dtype, device):
    """Put quantised layers on `device` in place of the linear layers of the attention blocks.

    Convolutions, norms and embeddings of the timestep stay as they are, where they are.

    Args:
        kind: "nf4" or "int8".
        dtype: in which products are computed.
    """
    for name, layer in _layers(unet):
        unet.set_submodule(name, QuantizedLinear(layer, kind, dtype, device))


def _layers(unet) -> list[tuple[str, nn.Linear]]:
    return [
        (name, layer) for name, layer in unet.named_modules() if ".attentions." in name and type(layer) is nn.Linear
    ]


class QuantizedLinear(nn.Module):
    """A frozen Linear whose weight is whole only while a product with it is computed, forward and backward.

    bitsandbytes' kernels round it and make it whole. (Its own layers keep their inputs for the backward pass even under
    gradient checkpointing, give float32 under autocast, and on a CPU no gradients in evaluation mode.) nf4 is the 4-bit
    number of QLoRA (Dettmers et al. 2023), int8 has a scale for each row, as the weights of LLM.int8() (Dettmers et al.
    2022).
    """

    def __init__(self, layer: nn.Linear, kind: str, dtype: torch.dtype, device):
        super().__init__()
        import bitsandbytes  # noqa: F401  (it registers its kernels)

        self.in_features, self.out_features, self.dtype = layer.in_features, layer.out_features, dtype
        weight = layer.weight.data.to(device)
        if kind == "nf4":
            packed, scales = torch.ops.bitsandbytes.quantize_4bit(weight, BLOCK, "nf4", torch.uint8)
        else:
            packed, scales, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weight.half())
        # no buffers, which distributed training would send around at each step
        self.packed, self.scales = (nn.Parameter(part, requires_grad=False) for part in (packed, scales))
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.to(device), requires_grad=False)

    def forward(self, x):  # (..., in_features) -> (..., out_features)
        shape = (self.out_features, self.in_features)
        product = _Product.apply(x.to(self.dtype), self.packed, self.scales, shape)
        return product if self.bias is None else product + self.bias.to(self.dtype)


def _whole(packed, scales, shape, dtype) -> torch.Tensor:
    if packed.dtype is torch.int8:
        return packed.to(dtype).mul_((scales / 127)[:, None])
    return torch.ops.bitsandbytes.dequantize_4bit(packed, scales, BLOCK, "nf4", shape, dtype)


class _Product(torch.autograd.Function):
    """x W^T, with nothing kept for the backward pass but what is there anyway."""

    @staticmethod
    def forward(ctx, x, packed, scales, shape):
        ctx.save_for_backward(packed, scales)
        ctx.shape = shape
        return F.linear(x, _whole(packed, scales, shape, x.dtype))

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ _whole(*ctx.saved_tensors, ctx.shape, gradient.dtype), None, None, None


def weight_bytes(unet, kind: str | None, dtype: torch.dtype) -> int:
    """What the weights of a UNet take on the device: counted by shapes, so a UNet without memory will do.

    Of nf4, half a byte for each and four for the scale of 64, of int8 a byte for each and four for the scale of a row.
    """
    size, total = dtype.itemsize, sum(parameter.numel() for parameter in unet.parameters())
    layers = [layer.weight.shape for _, layer in _layers(unet)] if kind else []
    weights = sum(rows * columns for rows, columns in layers)
    of_weight = {"nf4": 1 / 2 + 4 / BLOCK, "int8": 1.0, None: size}[kind]
    scales = 4 * sum(rows for rows, _ in layers) if kind == "int8" else 0
    return round((total - weights) * size + weights * of_weight + scales)
