"""Tiny Stable Diffusion pipelines of the real classes, with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from examples.quickstart.tools.architecture import build_tokenizer
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource

# The words in the tests' prompts; the tokenizer splits all others
WORDS = """a an the of on in at by with and background image photo drawing painting style circle triangle square hexagon
star cat dog fish horse cow house red orange yellow green blue purple pink white black big small number""".split()
# Over 200 tokens
LONG_PROMPT = ", ".join(
    f"a {size} {color} cat on a roof" for color in ("red", "blue", "pink") for size in ("big", "small") * 6
)
TINY_WIDTHS = [12, 16, 32]  # context widths: of the text, and of two levels of self-attention
ONE_LEVEL = {  # changes of `tiny_unet` for tests that compile it
    "block_out_channels": (16,),
    "down_block_types": ("CrossAttnDownBlock2D",),
    "up_block_types": ("CrossAttnUpBlock2D",),
}


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


def unet_inputs(seed=1):
    """Return latents, timesteps and text for `tiny_unet`."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([3, 900]), torch.randn(2, 7, 12, generator=generator)


def tiny_hypernetwork(seed=0, activation="relu", widths=tuple(TINY_WIDTHS), biases=False, **options):
    """Return a hypernetwork that clearly changes what `tiny_unet` computes; with `biases`, as after some training."""
    torch.manual_seed(seed)
    hypernetwork = Hypernetwork(widths, activation=activation, weight_init="kaiming_normal", **options)
    for parameter in hypernetwork.parameters() if biases else ():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return hypernetwork


def trained_hypernetwork(seed=0, activation="linear", **options):
    """Return a hypernetwork as after training: with biases, frozen, in evaluation mode."""
    return tiny_hypernetwork(seed, activation, **{"biases": True, **options}).eval().requires_grad_(False)


def tiny_pipeline(prediction_type="epsilon", **unet_changes):
    unet, tokenizer = (
        tiny_unet(**unet_changes),
        build_tokenizer(WORDS),
    )  # the UNet first: its seed determines the others too
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
    """Return an SDXL pipeline: two text encoders whose tokenizers pad differently, context widths 16, 32, 36."""
    tokenizers = build_tokenizer(WORDS), build_tokenizer(WORDS)
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
    """Load a model as a training run does."""
    return load_stable_diffusion(identify_base_model(ModelSource(str(path), **options)), unet_dtype)


def generate(pipe, prompt="a red star", steps=3, **arguments):
    """Return the images of a pipeline's call with a fixed seed, as a float array (B, height, width, 3)."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, num_inference_steps=steps, output_type="np", **arguments).images
