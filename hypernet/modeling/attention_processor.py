"""The attention processor that lets hypernetworks transform the context of keys and values."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

from hypernet.modeling.stack import Contexts, HypernetworkStack, Maps


class HypernetworkAttnProcessor:
    """diffusers' `AttnProcessor2_0`, with keys and values computed from the hypernetworks' contexts.

    It holds no parameters, so the UNet's state dict does not change. While all strengths are 0, it calls the original
    processor.

    Args:
        stack: the hypernetworks of the UNet.
        original: the processor it replaces.
    """

    def __init__(self, stack: HypernetworkStack, original: Any):
        self.stack = stack
        self.original = original

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,  # (B, tokens, channels) or (B, channels, height, width)
        encoder_hidden_states: torch.Tensor | None = None,  # (B, text tokens, text width); None in self-attention
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        hypernetwork_shared: tuple[Contexts | None, Maps] | None = None,  # the text's contexts, and the maps
    ) -> torch.Tensor:
        if not self.stack.active:
            return self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
        residual, shape = hidden_states, hidden_states.shape
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        if len(shape) == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, tokens, channels)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)  # (B, tokens, channels)

        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states  # (B, tokens, width)
        text, maps = hypernetwork_shared or (None, {})
        if encoder_hidden_states is not None and attn.norm_cross:
            context, text = attn.norm_encoder_hidden_states(context), None
        key, value = self._project(attn, context, text if encoder_hidden_states is not None else None, maps)

        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, tokens, head channels)

        query, key, value = split(attn.to_q(hidden_states)), split(key), split(value)
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
            hidden_states = hidden_states.transpose(1, 2).reshape(shape)  # (B, channels, height, width)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _project(self, attn: Attention, context: torch.Tensor, text: Contexts | None, maps: Maps) -> Contexts:
        """Return keys and values, (B, context tokens, channels) each, from the cheapest source there is."""
        if text is not None:
            return attn.to_k(text[0]), attn.to_v(text[1])
        if context.shape[-1] in maps:
            map_k, map_v = maps[context.shape[-1]]
            return map_k.project(attn.to_k, context), map_v.project(attn.to_v, context)
        context_k, context_v = self.stack(context)  # (B, context tokens, width)
        return attn.to_k(context_k), attn.to_v(context_v)
