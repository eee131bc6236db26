"""Linear hypernetworks with less arithmetic, and the same result.

Without activation, LayerNorm and dropout a module is `x M + c`, with M the product of its weights. M can be built once per
forward and shared by all layers of its width; where a layer sees many tokens, M is better folded into the layer's own
projection. Which is least is counted, in multiply-adds of a step.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from hypernet.modeling.hypernetwork import is_autocast


@dataclasses.dataclass(frozen=True)
class MapPlan:
    """What is least for one width: to build its maps at all, and from how many tokens of a layer on to fold them."""

    build: bool
    fuse_from: float  # tokens, the batch's together


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """What a linear module adds to a context x, x matrix^T + bias, times the strength; differentiable."""

    matrix: torch.Tensor  # (width, width)
    bias: torch.Tensor  # (width,)
    fuse_from: float

    def transform(self, x):  # (B, tokens, width)
        """The context as the hypernetwork makes it, in the precision of x."""
        plain = x if is_autocast(x) else x.to(self.matrix.dtype)
        return x + F.linear(plain, self.matrix.to(plain.dtype), self.bias.to(plain.dtype)).to(x.dtype)

    def project(self, projection, x):  # (B, tokens, width) -> (B, tokens, out)
        """`projection` of the transformed context; folded into its weight where that is less."""
        if x.shape[0] * x.shape[1] < self.fuse_from or not is_plain_linear(projection):
            return projection(self.transform(x))
        weight = projection.weight
        matrix, bias = self.matrix.to(weight.dtype), self.bias.to(weight.dtype)
        moved = weight @ bias if projection.bias is None else weight @ bias + projection.bias
        return F.linear(x, weight + weight @ matrix, moved)


def is_plain_linear(projection) -> bool:
    """Whether it is its weight and nothing else: no hooks, no offloading (which replaces `forward`), no odd storage."""
    touched = projection._forward_hooks or projection._forward_pre_hooks or "forward" in vars(projection)
    if type(projection) is not nn.Linear or touched or type(projection.weight) is not nn.Parameter:
        return False
    return projection.weight.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def linear_map(module, dtype: torch.dtype | None = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """What a linear `HypernetworkModule` computes, matrix (width, width) and bias (width,): its layers in one product.

    It is taken from the output on, and differentiable; `dtype=None` is the precision of the weights.
    """
    layers = [layer for layer in module.linear if isinstance(layer, nn.Linear)]
    *firsts, (matrix, bias) = [(layer.weight.to(dtype=dtype), layer.bias.to(dtype=dtype)) for layer in layers]
    for before, bias_before in reversed(firsts):
        bias = bias + (matrix @ bias_before).to(bias.dtype)
        matrix = matrix @ before
    return matrix, bias


def build_map(module, strength: float, fuse_from: float) -> LinearMap:
    """The map of a linear `HypernetworkModule` for a forward, in the precision of its weights."""
    matrix, bias = linear_map(module, dtype=None)
    return LinearMap(strength * matrix, strength * bias, fuse_from)


def make_plan(structure, width: int, layers: list[tuple[int, float]], training: bool) -> MapPlan:
    """Count the multiply-adds of one part (K or V) of one width in each way, and choose.

    Training takes every product three times: forward, and once for the gradient of each of its factors. A folded
    projection costs W M, backwards the gradient of M, and the gradient of its weight, which a frozen one goes without.

    Args:
        structure: multiples of the width.
        layers: (tokens of the batch, output width of the projection) of each layer of this width; an infinite output
            width where several projections share the transformed context, as they do the text.
    """
    sizes, times = [int(multiple * width) for multiple in structure], 3 if training else 1
    of_a_token = sum(before * after for before, after in zip(sizes, sizes[1:]))
    plain = times * of_a_token * sum(tokens for tokens, _ in layers)
    build = times * sum(width * before * after for before, after in zip(sizes, sizes[1:-1]))
    apply = [times * tokens * width**2 for tokens, _ in layers]
    fold = [width * out * (tokens + 2 * width if training else width) for tokens, out in layers]
    folded = [tokens for (tokens, _), applied, folding in zip(layers, apply, fold) if folding < applied]
    mapped = build + sum(map(min, zip(apply, fold)))
    return MapPlan(mapped < plain, min(folded, default=math.inf))


def tokens_per_layer(unet, batch: int, height: int, width: int) -> dict[str, int]:
    """Layer name -> tokens that its self-attention sees, the batch's together, for latents of this size."""
    levels, tokens = len(unet.config.block_out_channels), {}
    for name in unet.attn_processors:
        block, number = name.split(".")[:2]
        level = {"down_blocks": int(number), "up_blocks": levels - 1 - int(number)} if number.isdigit() else {}
        scale = 2 ** level.get(block, levels - 1)
        tokens[name.removesuffix(".processor")] = batch * math.ceil(height / scale) * math.ceil(width / scale)
    return tokens
