"""Build the untrained parts of the quickstart's Stable Diffusion, with the shapes of SD 1.x in small."""

import json
from collections.abc import Iterable, Sequence

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

CLIP_PATTERN = (  # how CLIP splits a text before it looks for byte pairs
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def build_tokenizer(words: Iterable[str]) -> CLIPTokenizer:
    """Return a tokenizer like CLIP's, its byte pairs learned from these words; every byte has a token."""
    # Each word as often as no other: between pairs that are equally frequent, the learner chooses at random
    repeated = [word for count, word in enumerate(sorted(set(words))) for _ in range(1 + count)]
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_PATTERN), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    learner = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pieces
    trainer = trainers.BpeTrainer(vocab_size=8000, min_frequency=0, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(repeated, trainer)
    merges = [
        tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair)
        for pair in json.loads(learner.to_str())["model"]["merges"]
    ]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=32)


def build_vae(channels: Sequence[int], norm_num_groups: int) -> AutoencoderKL:
    """Return an untrained VAE with 4 latent channels at an eighth of the images' sides."""
    vae = AutoencoderKL(
        latent_channels=4,
        block_out_channels=tuple(channels),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=norm_num_groups,
        mid_block_add_attention=False,
        sample_size=128,
    )
    with torch.no_grad():  # start with little noise on the latents
        vae.quant_conv.bias[4:] = -6.0
        vae.quant_conv.weight[4:] *= 0.1
    return vae


def build_unet(channels: Sequence[int], heads: Sequence[int], width: int) -> UNet2DConditionModel:
    """Return an untrained UNet of three levels for latents of 16 x 16; `width` is that of the text encoder."""
    unet = UNet2DConditionModel(
        sample_size=16,
        layers_per_block=1,
        block_out_channels=tuple(channels),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=width,
        attention_head_dim=tuple(heads),  # the number of heads at each resolution, under diffusers' older name
        norm_num_groups=8,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    return unet


def build_text_encoder(tokenizer: CLIPTokenizer, width: int) -> CLIPTextModel:
    """Return an untrained text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    text_encoder = CLIPTextModel(config)
    for name, weight in text_encoder.named_parameters():
        if name.endswith("token_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.3)
        elif name.endswith("position_embedding.weight"):
            torch.nn.init.normal_(weight, std=0.1)
    return text_encoder


def build_scheduler() -> DDIMScheduler:
    """Return SD 1.x's noise schedule for velocity prediction, extended to almost no signal."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.02,  # SD 1.x has 0.012; this ends in pure noise, so that a small model obeys the background color
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
    )
