"""Attach hypernetworks to a diffusers UNet through its attention processors, and detach them."""

import contextlib
import numbers
from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from hypernet.modeling.attention_processor import HypernetworkAttnProcessor
from hypernet.modeling.composition import Attachable, Composition
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.modeling.stack import HypernetworkStack

# diffusers' processors that compute plain attention, each in its own way; others (such as IP-Adapter's) compute more
PLAIN_PROCESSORS = {
    "AttnProcessor",
    "AttnProcessor2_0",
    "AttnProcessorNPU",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "XLAFlashAttnProcessor2_0",
}


def attach(unet: nn.Module, hypernetwork: Attachable, strength: float = 1.0) -> None:
    """Let `hypernetwork` transform the context of every attention layer of `unet`; a second call stacks.

    The text is transformed once for all cross-attention layers and, in inference, once for all steps of an image. In
    training this happens outside the blocks that gradient checkpointing recomputes. The UNet may be moved, cast,
    compiled or offloaded afterwards. Attention slicing has no effect: the attention used here does not need it.

    Args:
        unet: a diffusers UNet, compiled or not.
        hypernetwork: the hypernetwork, or composition of several, to attach.
        strength: scales what the hypernetwork adds to a context; 0 turns it off.

    Raises:
        ValueError: if the UNet has none of the hypernetwork's widths, an attention layer has no plain to_k and to_v,
            or something else has changed the attention (an IP-Adapter, say).
        TypeError: if an argument is not a UNet, a hypernetwork or a number.
    """
    if not isinstance(hypernetwork, Composition):
        check_is_hypernetwork(hypernetwork)
    unet, strength = _unwrap(unet), _to_number(strength)
    layers = attention_layers(unet)
    check_widths(hypernetwork, layers)
    stack: HypernetworkStack | None = getattr(unet, "_hypernetworks", None)
    if stack is None:
        stack = HypernetworkStack(attention=layers)
        _wrap_processors(stack)
        unet._hypernetworks = stack
        hook = unet.register_forward_pre_hook(_before_forward, with_kwargs=True)
        stack.undo += [hook.remove, lambda: _unwrap_processors(stack)]
    stack.layers.append((hypernetwork, strength))


def set_strength(unet: nn.Module, strength: float, hypernetwork: Attachable | None = None) -> None:
    """Change the strength of one attached hypernetwork, or of all if none is given.

    Raises:
        ValueError: if `hypernetwork` is not attached to `unet`, or nothing is.
        TypeError: if the strength is not a number.
    """
    stack, strength = _find_stack(unet, hypernetwork), _to_number(strength)
    stack.layers[:] = [
        (attached, strength if hypernetwork in (None, attached) else old) for attached, old in stack.layers
    ]


@contextlib.contextmanager
def switched_off(unet: nn.Module) -> Iterator[None]:
    """A context in which all attached hypernetworks have strength 0; afterwards, they have strength 1.

    Raises:
        ValueError: if nothing is attached to `unet`.
    """
    set_strength(unet, 0.0)
    try:
        yield
    finally:
        set_strength(unet, 1.0)


def detach(unet: nn.Module, hypernetwork: Attachable | None = None) -> None:
    """Detach one hypernetwork, or all if none is given.

    Detaching the last one restores the attention processors from before the first `attach`, or those set since.

    Raises:
        ValueError: if `hypernetwork` is not attached to `unet`.
    """
    if hypernetwork is not None:
        layers = _find_stack(unet, hypernetwork).layers
        layers[:] = [(attached, strength) for attached, strength in layers if attached is not hypernetwork]
        if layers:
            return
    unet = _unwrap(unet)
    stack: HypernetworkStack | None = getattr(unet, "_hypernetworks", None)
    if stack is not None:
        for undo in stack.undo:
            undo()
        del unet._hypernetworks


def attention_layers(unet: nn.Module) -> dict[str, Attention]:
    """Return the attention layers of a UNet, on which hypernetworks act, by name.

    Raises:
        ValueError: if one has no plain to_k and to_v.
    """
    layers = {}
    for processor in unet.attn_processors:
        name = processor.removesuffix(".processor")
        layer = unet.get_submodule(name)
        if getattr(layer, "added_kv_proj_dim", None) is not None or getattr(layer, "to_k", None) is None:
            raise ValueError(f"{name} has no plain to_k and to_v, so no hypernetwork can act on it")
        layers[name] = layer
    return layers


def check_is_hypernetwork(hypernetwork: object) -> None:
    """Raise TypeError for anything else, such as a path."""
    if not isinstance(hypernetwork, Hypernetwork):
        raise TypeError(f"expected a Hypernetwork, as hypernet.load returns, not a {type(hypernetwork).__name__}")


def check_widths(hypernetwork: Attachable, layers: dict[str, Attention]) -> None:
    """Raise ValueError if `hypernetwork`, or one in a composition, transforms none of the layers' context widths."""
    widths = sorted({layer.to_k.in_features for layer in layers.values()})
    for each in hypernetwork.hypernetworks() if isinstance(hypernetwork, Composition) else [hypernetwork]:
        if not any(each.parameters_of_width(width) for width in widths):
            raise ValueError(
                f"{each.config.name} was made for another kind of model: it transforms widths "
                f"{', '.join(each.pairs)}; this UNet has {', '.join(map(str, widths))}"
            )


def _unwrap(unet: nn.Module) -> nn.Module:
    """Return the UNet itself if it is compiled. Raise TypeError if it is not a UNet."""
    unet = unet._orig_mod if is_compiled_module(unet) else unet
    if not hasattr(unet, "attn_processors"):
        raise TypeError(f"expected a UNet, such as pipe.unet, not a {type(unet).__name__}")
    return unet


def _find_stack(unet: nn.Module, hypernetwork: Attachable | None) -> HypernetworkStack:
    """Return the UNet's stack. Raise ValueError if it has none, or `hypernetwork` is not in it."""
    stack: HypernetworkStack | None = getattr(_unwrap(unet), "_hypernetworks", None)
    if stack is None or hypernetwork is not None and all(attached is not hypernetwork for attached, _ in stack.layers):
        raise ValueError("no such hypernetwork is attached to this UNet")
    return stack


def _to_number(strength: object) -> float:
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real):
        raise TypeError(f"strength must be a number, not a {type(strength).__name__}")
    return float(strength)


def _wrap_processors(stack: HypernetworkStack) -> None:
    """Wrap the processors that are not wrapped yet: all of them at first, later any set since.

    diffusers sets new ones in `enable_attention_slicing`, for example.
    """
    new = [layer for layer in stack.attention.values() if not isinstance(layer.processor, HypernetworkAttnProcessor)]
    for name in {type(layer.processor).__name__ for layer in new} - PLAIN_PROCESSORS:
        raise ValueError(f"the UNet uses {name}, which computes more than attention; hypernetworks do not work with it")
    for layer in new:
        layer.processor = HypernetworkAttnProcessor(stack, layer.processor)


def _unwrap_processors(stack: HypernetworkStack) -> None:
    for layer in stack.attention.values():
        if isinstance(layer.processor, HypernetworkAttnProcessor):
            layer.processor = layer.processor.original


def _before_forward(unet: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    """Forward pre-hook: compute what the attention layers share, and pass it to their processors.

    Shared are the text's contexts of keys and values, and the maps of linear hypernetworks.
    """
    stack: HypernetworkStack = unet._hypernetworks
    if not torch.compiler.is_compiling():
        _wrap_processors(stack)
    if stack.active:
        latents = kwargs["sample"] if "sample" in kwargs else args[0]  # (B, channels, height, width)
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]  # (B, tokens, width)
        maps = stack.build_maps(unet, latents, text)
        reaches_layers = unet.config.get("encoder_hid_dim_type") is None  # otherwise the UNet projects the text first
        shared = {"hypernetwork_shared": (stack.transform_text(text, maps) if reaches_layers else None, maps)}
        kwargs["cross_attention_kwargs"] = {**(kwargs.get("cross_attention_kwargs") or {}), **shared}
    return args, kwargs


class HypernetworkUNet(nn.Module):
    """A UNet and the hypernetwork attached to it in one module, so that distributed training sees every gradient."""

    def __init__(self, unet: nn.Module, hypernetwork: Hypernetwork):
        super().__init__()
        self.unet = unet
        self.hypernetwork = hypernetwork
        attach(unet, hypernetwork)

    def forward(
        self,
        noisy_latents: torch.Tensor,  # (B, channels, height, width)
        timesteps: torch.Tensor,  # (B,)
        encoder_hidden_states: torch.Tensor,  # (B, tokens, width)
        **conditions: Any,
    ) -> torch.Tensor:
        """Return the UNet's prediction, in the shape of `noisy_latents`.

        `conditions` are the UNet's other arguments, by diffusers' names: the text's mask, SDXL's extra conditions.
        """
        return self.unet(noisy_latents, timesteps, encoder_hidden_states, **conditions).sample
