"""Put hypernetworks on a diffusers UNet: its attention processors, attach and detach."""

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from hypernet.network import Hypernetwork


@dataclasses.dataclass
class Stack:
    """What is attached to one UNet: hypernetworks in order with their strengths, and how to undo it."""

    layers: list[tuple[Hypernetwork, float]] = dataclasses.field(default_factory=list)
    undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)

    @property
    def active(self) -> bool:
        return any(strength != 0 for _, strength in self.layers)

    def __call__(self, context):  # (B, tokens, width)
        """K and V context; each hypernetwork gets the previous one's output, K and V each on their own."""
        context_k = context_v = context
        for hypernetwork, strength in self.layers:
            if strength == 0:
                continue
            if hypernetwork.device != context.device:
                hypernetwork.to(context.device)
            context_k, context_v = hypernetwork(context_k, strength, context_v)
        return context_k, context_v


class HypernetworkAttnProcessor:
    """diffusers' `AttnProcessor2_0` with K and V made from what the hypernetworks make of the context.

    It holds no parameters, so the UNet's state dict stays as it was. With no strength above zero it hands over to the
    processor that was there before.
    """

    def __init__(self, stack: Stack, original):
        self.stack = stack
        self.original = original

    def __call__(
        self,
        attn,
        hidden_states,  # (B, tokens, channels) or (B, channels, height, width)
        encoder_hidden_states=None,  # (B, text tokens, text width); None in self-attention
        attention_mask=None,
        temb=None,
        hypernetwork_context=None,  # K and V context of the text, where `attach` has computed them for all layers
    ):
        if not self.stack.active:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, tokens, channels)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        if encoder_hidden_states is not None and hypernetwork_context is not None and not attn.norm_cross:
            context_k, context_v = hypernetwork_context
        else:
            if encoder_hidden_states is not None and attn.norm_cross:
                context = attn.norm_encoder_hidden_states(context)
            context_k, context_v = self.stack(context)

        def split(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, tokens, channels of a head)

        query, key, value = split(attn.to_q(hidden_states)), split(attn.to_k(context_k)), split(attn.to_v(context_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], context.shape[0])
            attention_mask = attention_mask.view(context.shape[0], attn.heads, -1, attention_mask.shape[-1])
        hidden_states = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        hidden_states = hidden_states.transpose(1, 2).flatten(2).to(query.dtype)  # (B, tokens, channels)

        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if len(shape) == 4:
            hidden_states = hidden_states.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor


def attach(unet, hypernetwork: Hypernetwork, strength: float = 1.0):
    """Let `hypernetwork` transform the context of every attention layer of `unet`; a second call stacks.

    The text is transformed once per forward of the UNet, for all its cross-attention layers, and before any block
    that gradient checkpointing might run again.

    Raises:
        ValueError: if an attention layer projects its context in a way that has no plain to_k and to_v.
    """
    stack = getattr(unet, "_hypernetworks", None)
    if stack is None:
        stack = unet._hypernetworks = Stack()
        _install(unet, stack)
    stack.layers.append((hypernetwork, strength))


def detach(unet):
    """Take all hypernetworks off; the processors from before the first `attach` are back."""
    stack = getattr(unet, "_hypernetworks", None)
    if stack is not None:
        for undo in stack.undo:
            undo()
        del unet._hypernetworks


def _install(unet, stack):
    originals = dict(unet.attn_processors)
    for name in originals:
        layer = unet.get_submodule(name.removesuffix(".processor"))
        if getattr(layer, "added_kv_proj_dim", None) is not None or getattr(layer, "to_k", None) is None:
            del unet._hypernetworks
            raise ValueError(f"{name.removesuffix('.processor')} is no layer that a hypernetwork can be put on")
    unet.set_attn_processor({name: HypernetworkAttnProcessor(stack, was) for name, was in originals.items()})
    stack.undo.append(lambda: unet.set_attn_processor(originals))
    if unet.config.get("encoder_hid_dim_type") is None:  # else the layers get another text than the UNet does
        hook = unet.register_forward_pre_hook(_transform_text, with_kwargs=True)
        stack.undo.append(hook.remove)


def _transform_text(unet, args, kwargs):
    """Forward pre-hook: add the text's K and V context to what the UNet hands to every attention processor."""
    stack = unet._hypernetworks
    if stack.active:
        text = kwargs["encoder_hidden_states"] if "encoder_hidden_states" in kwargs else args[2]
        shared = {"hypernetwork_context": stack(text)}
        kwargs["cross_attention_kwargs"] = {**(kwargs.get("cross_attention_kwargs") or {}), **shared}
    return args, kwargs


class HypernetworkUNet(nn.Module):
    """A UNet and the hypernetwork on it as one module, so that distributed training sees every gradient."""

    def __init__(self, unet, hypernetwork: Hypernetwork):
        super().__init__()
        self.unet = unet
        self.hypernetwork = hypernetwork
        attach(unet, hypernetwork)

    def forward(self, noisy_latents, timesteps, encoder_hidden_states) -> torch.Tensor:
        """The UNet's prediction, (B, channels, height, width) like `noisy_latents`."""
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=encoder_hidden_states).sample
