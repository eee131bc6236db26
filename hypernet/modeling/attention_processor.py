"""The attention processor that lets hypernetworks transform what keys and values are made from."""
import torch.nn.functional as F

from hypernet.modeling.stack import HypernetworkStack


class HypernetworkAttnProcessor:
    """diffusers' `AttnProcessor2_0` with K and V made from what the hypernetworks make of the context.

    It holds no parameters, so the UNet's state dict stays as it was. With no strength above zero it hands over to the
    processor that was there before.
    """

    def __init__(self, stack: HypernetworkStack, original):
        self.stack = stack
        self.original = original

    def __call__(
        self,
        attn,
        hidden_states,  # (B, tokens, channels) or (B, channels, height, width)
        encoder_hidden_states=None,  # (B, text tokens, text width); None in self-attention
        attention_mask=None,
        temb=None,
        hypernetwork_shared=None,  # what `attach` has computed for all layers of this forward
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
        text, maps = hypernetwork_shared or (None, {})
        if encoder_hidden_states is not None and attn.norm_cross:
            context, text = attn.norm_encoder_hidden_states(context), None
        if encoder_hidden_states is not None and text is not None:
            key, value = attn.to_k(text[0]), attn.to_v(text[1])
        elif context.shape[-1] in maps:
            map_k, map_v = maps[context.shape[-1]]
            key, value = map_k.project(attn.to_k, context), map_v.project(attn.to_v, context)
        else:
            context_k, context_v = self.stack(context)
            key, value = attn.to_k(context_k), attn.to_v(context_v)

        def split(x):
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (B, heads, tokens, channels of a head)

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
            hidden_states = hidden_states.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor
