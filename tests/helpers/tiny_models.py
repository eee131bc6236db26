"""Stable Diffusion pipelines of the real classes, small enough for a test and with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from examples.quickstart.tools.build_model import build_tokenizer
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource

TINY_WIDTHS = [12, 16, 32]  # context widths: the text's, and the two of self-attention


def tiny_unet(seed=0, **changes):
    torch.manual_seed(seed)
    config = {
        "sample_size": 8,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**config, **changes}).eval().requires_grad_(False)


def tiny_pipeline(prediction_type="epsilon", **unet_changes):
    unet, tokenizer = tiny_unet(**unet_changes), build_tokenizer()  # the UNet first: it seeds the others, too
    return StableDiffusionPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(tiny_text_config(tokenizer)).eval(),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=tiny_scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def tiny_xl_pipeline(prediction_type="epsilon", **changes):
    """Two text encoders, whose tokenizers pad differently, and a UNet of SDXL's kind: widths 16, 32, 36."""
    tokenizers = build_tokenizer(), build_tokenizer()
    tokenizers[1].pad_token = "!"
    first = tiny_text_config(tokenizers[0])
    second = tiny_text_config(tokenizers[1], hidden_size=24, projection_dim=24, hidden_act="gelu")
    unet = tiny_unet(
        block_out_channels=(8, 16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=36,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    )
    return StableDiffusionXLPipeline(
        vae=tiny_vae(),
        text_encoder=CLIPTextModel(first).eval(),
        text_encoder_2=CLIPTextModelWithProjection(second).eval(),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=unet,
        scheduler=tiny_scheduler(prediction_type),
        **{"add_watermarker": False, **changes},
    )


def tiny_scheduler(prediction_type):
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def tiny_vae(**changes):
    config = {
        "block_out_channels": (4, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 2,
        "sample_size": 64,
        "scaling_factor": 0.7,
    }
    return AutoencoderKL(**{**config, **changes})


def tiny_text_config(tokenizer, **changes):
    config = {
        "vocab_size": len(tokenizer),
        "hidden_size": 12,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return CLIPTextConfig(**{**config, **changes})


def open_models(path, unet_dtype=torch.float32, **options):
    """A model as the training loads it."""
    return load_stable_diffusion(identify_base_model(ModelSource(str(path), **options)), unet_dtype)
