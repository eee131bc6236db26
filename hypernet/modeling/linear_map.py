"""Run linear hypernetworks with less arithmetic and the same result.

Without activation, LayerNorm and dropout a module computes `x M + c`, where M is the product of its weights. M can be
built once per forward and shared by all layers of its width. Where a layer sees many tokens, fusing M into the layer's
own projection costs even less. `make_plan` counts the multiply-adds of a step and picks the cheapest way.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from hypernet.modeling.hypernetwork import HypernetworkModule, ResidualLayer, is_autocast


@dataclasses.dataclass(frozen=True)
class MapPlan:
    """The cheapest way to compute one width.

    Attributes:
        use_map: whether to build maps at all.
        fuse_from: the fewest tokens in a batch for which a layer fuses the map into its projection.
    """

    use_map: bool
    fuse_from: float


@dataclasses.dataclass(frozen=True)
class LinearMap:
    """What a linear module adds to a context x: x matrix^T + bias, both times the strength. Differentiable."""

    matrix: torch.Tensor  # (width, width)
    bias: torch.Tensor  # (width,)
    fuse_from: float

    def transform(self, x: torch.Tensor) -> torch.Tensor:  # (B, tokens, width)
        """Return the transformed context, in the shape and precision of x."""
        plain = x if is_autocast(x) else x.to(self.matrix.dtype)
        return x + F.linear(plain, self.matrix.to(plain.dtype), self.bias.to(plain.dtype)).to(x.dtype)

    def project(self, projection: nn.Module, x: torch.Tensor) -> torch.Tensor:  # (B, tokens, width)
        """Return `projection` of the transformed context, (B, tokens, out); fuse the map into it if that is cheaper."""
        if x.shape[0] * x.shape[1] < self.fuse_from or not is_plain_linear(projection):
            return projection(self.transform(x))
        weight = projection.weight  # (out, width)
        matrix, bias = self.matrix.to(weight.dtype), self.bias.to(weight.dtype)
        fused_bias = weight @ bias if projection.bias is None else weight @ bias + projection.bias  # (out,)
        return F.linear(x, weight + weight @ matrix, fused_bias)


def is_plain_linear(projection: nn.Module) -> bool:
    """Return whether the module is a Linear and nothing else: no hooks, offloading or quantized weights."""
    if type(projection) is not nn.Linear or type(projection.weight) is not nn.Parameter:
        return False
    offloaded = "forward" in vars(projection)  # accelerate replaces a module's forward
    if projection._forward_hooks or projection._forward_pre_hooks or offloaded:
        return False
    return projection.weight.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def linear_map(
    module: HypernetworkModule, dtype: torch.dtype | None = torch.float64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrix (width, width) and bias (width,) of a linear module, the product of its layers. Differentiable.

    Multiplies from the last layer back. `dtype=None` keeps the precision of the weights.
    """
    layers = [layer for layer in module.linear if isinstance(layer, (nn.Linear, ResidualLayer))]
    *earlier, (matrix, bias) = [_layer_map(layer, dtype) for layer in layers]
    for weight_before, bias_before in reversed(earlier):
        bias = bias + (matrix @ bias_before).to(bias.dtype)  # under autocast the product is in half precision
        matrix = matrix @ weight_before
    if module.is_residual:  # the map describes what the module adds
        matrix = matrix - torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return matrix, bias


def _layer_map(layer: nn.Linear | ResidualLayer, dtype: torch.dtype | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return matrix (after, before) and bias (after,) of a linear layer."""
    if isinstance(layer, nn.Linear):
        return layer.weight.to(dtype=dtype), layer.bias.to(dtype=dtype)
    matrix, bias = _layer_map(layer.linear[0], dtype)
    return matrix + layer.skip_matrix().to(matrix.dtype), bias


def build_map(module: HypernetworkModule, strength: float, fuse_from: float) -> LinearMap:
    """Return the map of a linear module for one forward, in the precision of its weights."""
    matrix, bias = linear_map(module, dtype=None)
    return LinearMap(strength * matrix, strength * bias, fuse_from)


def make_plan(structure: Sequence[float], width: int, layers: list[tuple[int, float]], training: bool) -> MapPlan:
    """Count the multiply-adds of each way to compute one part (K or V) of one width, and choose the cheapest.

    Training takes every product three times: forward, and once for the gradient of each factor. Fusing costs W M, in
    the backward pass the gradient of M, and the gradient of the fused weight, which a frozen projection does not need.

    Args:
        structure: layer widths as multiples of `width`.
        layers: (tokens in the batch, output width of the projection) for each layer of this width. The output width is
            infinite where fusing is no option, such as for the text, whose context many projections share.
        training: whether gradients are computed.
    """
    sizes, passes = [int(multiple * width) for multiple in structure], 3 if training else 1
    per_token = sum(before * after for before, after in zip(sizes, sizes[1:]))
    module_cost = passes * per_token * sum(tokens for tokens, _ in layers)
    build_cost = passes * sum(width * before * after for before, after in zip(sizes, sizes[1:-1]))
    apply_costs = [passes * tokens * width**2 for tokens, _ in layers]
    fuse_costs = [width * out * (tokens + 2 * width if training else width) for tokens, out in layers]
    fused = [tokens for (tokens, _), apply, fuse in zip(layers, apply_costs, fuse_costs) if fuse < apply]
    map_cost = build_cost + sum(map(min, zip(apply_costs, fuse_costs)))
    return MapPlan(map_cost < module_cost, min(fused, default=math.inf))


def tokens_per_layer(names: Iterable[str], levels: int, batch: int, height: int, width: int) -> dict[str, int]:
    """Return layer name -> tokens of the batch in its self-attention, for latents of this height and width.

    Args:
        names: of the attention layers.
        levels: number of resolutions the UNet works at.
    """
    tokens = {}
    for name in names:
        block, number = name.split(".")[:2]
        level = {"down_blocks": int(number), "up_blocks": levels - 1 - int(number)} if number.isdigit() else {}
        scale = 2 ** level.get(block, levels - 1)
        tokens[name] = batch * math.ceil(height / scale) * math.ceil(width / scale)
    return tokens
