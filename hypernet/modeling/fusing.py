"""Fold a linear hypernetwork into a UNet's weights, for good."""

import torch
from torch import nn

from hypernet.modeling.attachment import attention_layers, check_widths
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import linear_map


@torch.no_grad()
def fuse(unet, hypernetwork: Hypernetwork, strength: float = 1.0):
    """Fold a linear hypernetwork into the weights of `unet`, so that drawing with it costs nothing more.

    to_k(x + s (M x + b)) = W (1 + s M) x + s W b: each to_k and to_v gets the weight W (1 + s M) and the bias s W b, in
    their own precision. Hypernetworks attached to the UNet go on to act, before this one; so does one merged later. The
    plain UNet comes back only by loading it again; saved, the new biases would find no place in a UNet that is loaded.

    Raises:
        ValueError: if the hypernetwork is not linear, the UNet has none of its widths, or the UNet's weights are
            quantised, fused or have LoRAs on them (nothing is changed then).
    """
    if not isinstance(hypernetwork, Hypernetwork):
        raise TypeError(f"merge takes a Hypernetwork, as hypernet.load gives it, not a {type(hypernetwork).__name__}")
    if not is_linear(hypernetwork):
        config = hypernetwork.config
        what = "LayerNorm" if config.layer_norm else f"the activation {config.activation}"
        raise ValueError(f"{config.name} has {what}, so it is no linear map that could be merged; attach it instead")
    folded, layers = [], attention_layers(unet)
    check_widths(hypernetwork, layers)
    for layer in layers.values():
        pair = (
            hypernetwork.pairs[str(layer.to_k.in_features)] if str(layer.to_k.in_features) in hypernetwork.pairs else {}
        )
        if pair and getattr(layer, "fused_projections", False):
            raise ValueError("the UNet's projections are fused (fuse_qkv_projections); merge before that")
        for part, module in pair.items():
            projection = getattr(layer, f"to_{part}")
            if type(projection) is not nn.Linear or not projection.weight.is_floating_point():
                kind = type(projection).__name__
                raise ValueError(
                    f"a to_{part} of the UNet is a {kind}, no plain Linear; merge before LoRAs, unquantised"
                )
            folded.append((projection, *_fuse_projection(projection, *linear_map(module), strength)))
    for projection, weight, bias in folded:
        projection.weight.copy_(weight)
        if bias is not None:
            projection.bias = nn.Parameter(bias.to(projection.weight), requires_grad=projection.weight.requires_grad)


def _fuse_projection(projection, matrix, bias, strength):
    """Weight and bias of `projection` after the map; no bias where there was none and none is needed."""
    weight = projection.weight.double()
    matrix, bias = matrix.to(weight.device), bias.to(weight.device)
    changed = strength * (weight @ bias)
    if projection.bias is not None:
        changed += projection.bias.double()
    elif not changed.any():
        changed = None
    return weight + strength * (weight @ matrix), changed
