"""Fuse a linear hypernetwork into the weights of a UNet, permanently."""

import torch
from torch import nn

from hypernet.modeling.attachment import attention_layers, check_is_hypernetwork, check_widths
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import linear_map


@torch.no_grad()
def fuse(unet: nn.Module, hypernetwork: Hypernetwork, strength: float = 1.0) -> None:
    """Fuse a linear hypernetwork into the weights of `unet`, so that generating with it costs nothing extra.

    to_k(x + s (M x + b)) = W (1 + s M) x + s W b: each to_k and to_v gets the weight W (1 + s M) and the bias s W b,
    in its own precision. Hypernetworks attached to the UNet stay active and act before this one, as does one fused
    later. To get the plain UNet back, load it again. Do not save the fused UNet: a UNet built from its config has no
    place for the biases.

    Args:
        unet: a diffusers UNet. Left as it is if an error is raised.
        hypernetwork: a hypernetwork without activation and LayerNorm.
        strength: the factor s.

    Raises:
        ValueError: if the hypernetwork is not linear, the UNet has none of its widths, or the UNet's weights are
            quantized, fused or have LoRAs on them.
        TypeError: for anything but a hypernetwork.
    """
    check_is_hypernetwork(hypernetwork)
    if not is_linear(hypernetwork):
        config = hypernetwork.config
        reason = "LayerNorm" if config.layer_norm else f"the activation {config.activation}"
        raise ValueError(f"{config.name} has {reason}, so it is not linear and cannot be fused; attach it instead")
    layers = attention_layers(unet)
    check_widths(hypernetwork, layers)
    changes = []  # all computed before the first is applied
    for layer in layers.values():
        width = str(layer.to_k.in_features)
        if width not in hypernetwork.pairs:
            continue
        if getattr(layer, "fused_projections", False):
            raise ValueError(
                "the UNet's projections are fused (fuse_qkv_projections); fuse the hypernetwork before that"
            )
        for part, module in hypernetwork.pairs[width].items():
            projection = getattr(layer, f"to_{part}")
            if type(projection) is not nn.Linear or not projection.weight.is_floating_point():
                problem = f"the UNet's to_{part} is not a plain Linear but a {type(projection).__name__}"
                raise ValueError(f"{problem}; fuse before adding LoRAs, and without quantization")
            changes.append((projection, *_fuse_projection(projection, *linear_map(module), strength)))
    for projection, weight, bias in changes:
        projection.weight.copy_(weight)
        if bias is not None:
            projection.bias = nn.Parameter(bias.to(projection.weight), requires_grad=projection.weight.requires_grad)


def _fuse_projection(
    projection: nn.Linear, matrix: torch.Tensor, bias: torch.Tensor, strength: float
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the projection's fused weight (out, width) and bias (out,), in float64; no bias where it would be 0."""
    weight = projection.weight.double()
    matrix, bias = matrix.to(weight.device), bias.to(weight.device)
    fused_bias = strength * (weight @ bias)
    if projection.bias is not None:
        fused_bias += projection.bias.double()
    elif not fused_bias.any():
        fused_bias = None
    return weight + strength * (weight @ matrix), fused_bias
