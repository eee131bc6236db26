"""Rename a diffusers pipeline's weights to the original (CompVis, Stability) single-file format."""

import re

import torch

UNET = {  # patterns in diffusers' names -> replacements
    r"(resnets\.\d+)\.norm1": r"\1.in_layers.0",
    r"(resnets\.\d+)\.conv1": r"\1.in_layers.2",
    r"(resnets\.\d+)\.time_emb_proj": r"\1.emb_layers.1",
    r"(resnets\.\d+)\.norm2": r"\1.out_layers.0",
    r"(resnets\.\d+)\.conv2": r"\1.out_layers.3",
    r"(resnets\.\d+)\.conv_shortcut": r"\1.skip_connection",
    r"^time_embedding\.linear_1": "time_embed.0",
    r"^time_embedding\.linear_2": "time_embed.2",
    r"^add_embedding\.linear_1": "label_emb.0.0",
    r"^add_embedding\.linear_2": "label_emb.0.2",
    r"^conv_in": "input_blocks.0.0",
    r"^mid_block\.resnets\.0": "middle_block.0",
    r"^mid_block\.attentions\.0": "middle_block.1",
    r"^mid_block\.resnets\.1": "middle_block.2",
    r"^conv_norm_out": "out.0",
    r"^conv_out": "out.2",
}
VAE = {
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.group_norm": "mid.attn_1.norm",
    r"mid_block\.attentions\.0\.to_([qkv])": r"mid.attn_1.\1",
    r"mid_block\.attentions\.0\.to_out\.0": "mid.attn_1.proj_out",
    r"conv_shortcut": "nin_shortcut",
    r"conv_norm_out": "norm_out",
}
OPEN_CLIP = {
    r"^embeddings\.token_embedding": "token_embedding",
    r"^embeddings\.position_embedding\.weight": "positional_embedding",
    r"^encoder\.layers": "transformer.resblocks",
    r"\.layer_norm([12])": r".ln_\1",
    r"\.self_attn": ".attn",
    r"\.fc1": ".c_fc",
    r"\.fc2": ".c_proj",
    r"^final_layer_norm": "ln_final",
    r"^text_projection\.weight": "text_projection",
}


def renamed(states, rules, prefix):
    """Return `states` with every rule applied to their names, and `prefix` before them."""
    result = {}
    for name, value in states.items():
        for pattern, replacement in rules.items():
            name = re.sub(pattern, replacement, name)
        result[prefix + name] = value
    return result


def unet_states(unet):
    """Rename a UNet's weights.

    The original numbers input and output blocks across all levels, one per ResNet block or downsampler.
    """
    count = unet.config.layers_per_block + 1

    def block(kind, offset, part):
        return lambda match: f"{kind}_blocks.{int(match[1]) * count + int(match[2]) + offset}.{part}"

    def upsampler(match):
        part = 2 if hasattr(unet.up_blocks[int(match[1])], "attentions") else 1
        return f"output_blocks.{int(match[1]) * count + count - 1}.{part}"

    rules = UNET | {
        r"^down_blocks\.(\d+)\.resnets\.(\d+)": block("input", 1, 0),
        r"^down_blocks\.(\d+)\.attentions\.(\d+)": block("input", 1, 1),
        r"^down_blocks\.(\d+)\.downsamplers\.(\d+)\.conv": block("input", count, "0.op"),
        r"^up_blocks\.(\d+)\.resnets\.(\d+)": block("output", 0, 0),
        r"^up_blocks\.(\d+)\.attentions\.(\d+)": block("output", 0, 1),
        r"^up_blocks\.(\d+)\.upsamplers\.0": upsampler,
    }
    return renamed(unet.state_dict(), rules, "model.diffusion_model.")


def vae_states(vae):
    """Rename a VAE's weights.

    The original counts the decoder's levels from the pixels, and its attention consists of 1x1 convolutions.
    """
    last = len(vae.decoder.up_blocks) - 1
    rules = VAE | {
        r"up_blocks\.(\d+)\.resnets": lambda match: f"up.{last - int(match[1])}.block",
        r"up_blocks\.(\d+)\.upsamplers\.0": lambda match: f"up.{last - int(match[1])}.upsample",
    }
    states = renamed(vae.state_dict(), rules, "first_stage_model.")
    return {name: x[..., None, None] if "attn" in name and x.dim() == 2 else x for name, x in states.items()}


def text_states(text_encoder):
    """Return the weights without the prefix `text_model`, which transformers before 5.6 adds."""
    return {name.removeprefix("text_model."): value for name, value in text_encoder.state_dict().items()}


def open_clip_states(text_encoder, prefix):
    """Rename the weights of an OpenCLIP text encoder.

    Queries, keys and values share one matrix, and the projection is the transpose of a linear layer's.
    """
    states = text_states(text_encoder)
    for name in [name for name in states if ".q_proj." in name]:
        parts = [states.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        states[name.replace(".q_proj.", ".in_proj_")] = torch.cat(parts)
    if "text_projection.weight" in states:
        states["text_projection.weight"] = states["text_projection.weight"].T.contiguous()
    return renamed(states, OPEN_CLIP, prefix)


def original_state_dict(pipeline, *, open_clip=False) -> dict[str, torch.Tensor]:
    """Return the weights in SDXL's format if there are two text encoders, SD 2.x's with `open_clip`, else SD 1.x's."""
    states = unet_states(pipeline.unet) | vae_states(pipeline.vae)
    if hasattr(pipeline, "text_encoder_2"):
        first = renamed(text_states(pipeline.text_encoder), {}, "conditioner.embedders.0.transformer.text_model.")
        return states | first | open_clip_states(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    if open_clip:
        return states | open_clip_states(pipeline.text_encoder, "cond_stage_model.model.")
    return states | renamed(text_states(pipeline.text_encoder), {}, "cond_stage_model.transformer.text_model.")
