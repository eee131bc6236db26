"""Put hypernetworks on a diffusers UNet: its attention processors, attach and detach."""

import numbers

import torch
from diffusers.models.attention_processor import Attention
from diffusers.utils.torch_utils import is_compiled_module
from torch import nn

from hypernet.modeling.attention_processor import HypernetworkAttnProcessor
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.modeling.stack import HypernetworkStack

PLAIN_PROCESSORS = {  # of diffusers: different ways to compute the same; others (IP-Adapter's, say) compute more
    "AttnProcessor",
    "AttnProcessor2_0",
    "AttnProcessorNPU",
    "FusedAttnProcessor2_0",
    "SlicedAttnProcessor",
    "XFormersAttnProcessor",
    "XLAFlashAttnProcessor2_0",
}


def attach(unet, hypernetwork: Hypernetwork, strength: float = 1.0):
    """Let `hypernetwork` transform the context of every attention layer of `unet`; a second call stacks.

    The text is transformed once for all cross-attention layers and, while drawing, for all steps of an image. In
    training that happens before any block that gradient checkpointing might run again. Moving, casting or compiling the
    UNet, offloading it, or slicing its attention (which has no effect: the attention here needs no slices) may follow.

    Raises:
        ValueError: if the UNet has none of its widths, an attention layer projects its context in a way that has no plain
            to_k and to_v, or something else has changed its attention (an IP-Adapter, say).
        TypeError: for anything else than a UNet, a hypernetwork and a number.
    """
    if not isinstance(hypernetwork, Hypernetwork):
        raise TypeError(f"attach takes a Hypernetwork, as hypernet.load gives it, not a {type(hypernetwork).__name__}")
    unet, strength = _plain(unet), _number(strength)
    stack = getattr(unet, "_hypernetworks", None)
    layers = attention_layers(unet)
    check_widths(hypernetwork, layers)
    if stack is None:
        stack = HypernetworkStack(attention=layers)
        _wrap_processors(stack)
        unet._hypernetworks = stack
        hook = unet.register_forward_pre_hook(_before_forward, with_kwargs=True)
        stack.undo += [hook.remove, lambda: _unwrap_processors(stack)]
    stack.layers.append((hypernetwork, strength))


def set_strength(unet, strength: float, hypernetwork: Hypernetwork | None = None):
    """Change the strength of an attached hypernetwork, or of all of them; nothing is loaded or attached anew.

    Raises:
        ValueError: if it is not attached to `unet`, or nothing is.
        TypeError: for a strength that is no number.
    """
    stack, strength = _stack(unet, hypernetwork), _number(strength)
    stack.layers[:] = [
        (attached, strength if hypernetwork in (None, attached) else old) for attached, old in stack.layers
    ]


def detach(unet, hypernetwork: Hypernetwork | None = None):
    """Take all hypernetworks off, or only this one.

    With the last one the processors from before the first `attach` (or set since) are back.

    Raises:
        ValueError: if it is not attached to `unet`.
    """
    if hypernetwork is not None:
        stack = _stack(unet, hypernetwork)
        stack.layers[:] = [layer for layer in stack.layers if layer[0] is not hypernetwork]
        if stack.layers:
            return
    unet = _plain(unet)
    stack = getattr(unet, "_hypernetworks", None)
    if stack is not None:
        for undo in stack.undo:
            undo()
        del unet._hypernetworks


def attention_layers(unet) -> dict[str, Attention]:
    """The attention layers of a UNet by name, which a hypernetwork acts on.

    Raises:
        ValueError: if one has no plain to_k and to_v.
    """
    layers = {name.removesuffix(".processor"): None for name in unet.attn_processors}
    for name in layers:
        layers[name] = layer = unet.get_submodule(name)
        if getattr(layer, "added_kv_proj_dim", None) is not None or getattr(layer, "to_k", None) is None:
            raise ValueError(f"{name} is no layer that a hypernetwork can be put on")
    return layers


def check_widths(hypernetwork: Hypernetwork, layers: dict[str, Attention]):
    """Raises: ValueError if none of these layers gets contexts of a width that `hypernetwork` transforms."""
    here = sorted({layer.to_k.in_features for layer in layers.values()})
    if not any(hypernetwork.parameters_of_width(width) for width in here):
        raise ValueError(
            f"{hypernetwork.config.name} has none of this UNet's widths: it transforms widths "
            f"{', '.join(hypernetwork.pairs)}; this model has {', '.join(map(str, here))}, so it was made for another "
            "kind of model"
        )


def _plain(unet):
    unet = unet._orig_mod if is_compiled_module(unet) else unet
    if not hasattr(unet, "attn_processors"):
        raise TypeError(f"hypernetworks go on a UNet, such as pipe.unet, not on a {type(unet).__name__}")
    return unet


def _stack(unet, hypernetwork) -> HypernetworkStack:
    stack = getattr(_plain(unet), "_hypernetworks", None)
    if stack is None or hypernetwork is not None and all(layer is not hypernetwork for layer, _ in stack.layers):
        raise ValueError("there is no such hypernetwork on this UNet; attach it first")
    return stack


def _number(strength) -> float:
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real):
        raise TypeError(f"a strength is a number, not a {type(strength).__name__}")
    return float(strength)


def _wrap_processors(stack):
    """Put ours before whatever processors there are, now or again (`enable_attention_slicing` sets new ones)."""
    new = [layer for layer in stack.attention.values() if not isinstance(layer.processor, HypernetworkAttnProcessor)]
    for name in {type(layer.processor).__name__ for layer in new} - PLAIN_PROCESSORS:
        raise ValueError(
            f"the UNet's attention is a {name}'s, which does more than attention; no hypernetwork goes with it"
        )
    for layer in new:
        layer.processor = HypernetworkAttnProcessor(stack, layer.processor)


def _unwrap_processors(stack):
    for layer in stack.attention.values():
        if isinstance(layer.processor, HypernetworkAttnProcessor):
            layer.processor = layer.processor.original


def _before_forward(unet, args, kwargs):
    """Forward pre-hook: add what all layers share to what the UNet hands to every attention processor.

    That is the text's K and V context, and the maps of linear hypernetworks.
    """
    stack = unet._hypernetworks
    if not torch.compiler.is_compiling():
        _wrap_processors(stack)
    if stack.active:
        latents = kwargs["sample"] if "sample" in kwargs else args[0]
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        maps = stack.build_maps(unet, latents, text)
        same = unet.config.get("encoder_hid_dim_type") is None  # else the layers get another text than this
        shared = {"hypernetwork_shared": (stack.transform_text(text, maps) if same else None, maps)}
        kwargs["cross_attention_kwargs"] = {**(kwargs.get("cross_attention_kwargs") or {}), **shared}
    return args, kwargs


class HypernetworkUNet(nn.Module):
    """A UNet and the hypernetwork on it as one module, so that distributed training sees every gradient."""

    def __init__(self, unet, hypernetwork: Hypernetwork):
        super().__init__()
        self.unet = unet
        self.hypernetwork = hypernetwork
        attach(unet, hypernetwork)

    def forward(self, noisy_latents, timesteps, encoder_hidden_states, **conditions) -> torch.Tensor:
        """The UNet's prediction, (B, channels, height, width) like `noisy_latents`.

        `conditions` are its other arguments by diffusers' names: a mask of the text, what SDXL takes.
        """
        return self.unet(noisy_latents, timesteps, encoder_hidden_states, **conditions).sample
