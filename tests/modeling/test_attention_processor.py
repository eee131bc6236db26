"""Attention with hypernetworks against a reference: forward hooks that replace the inputs of to_k and to_v."""

import pytest
import torch

import hypernet
from hypernet import HypernetworkUNet
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import tiny_hypernetwork, tiny_unet, unet_inputs


@pytest.mark.parametrize("strengths", [(1.0,), (0.4,), (1.0, 0.5), (0.0, 0.7)])
def test_output_matches_the_reference(strengths):
    unet, stack = tiny_unet(), [(tiny_hypernetwork(i), strength) for i, strength in enumerate(strengths)]
    for hypernetwork, strength in stack:
        hypernet.attach(unet, hypernetwork, strength)
    latents, timesteps, text = unet_inputs()
    expected = with_hooks(tiny_unet(), stack)(latents, timesteps, text).sample
    for result in (unet(latents, timesteps, text), unet(latents, timesteps, encoder_hidden_states=text)):
        assert (result.sample - expected).abs().max() < 1e-6
    assert (expected - tiny_unet()(latents, timesteps, text).sample).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_match_the_reference(checkpointing):
    latents, timesteps, text = unet_inputs()
    unet, hypernetwork = tiny_unet(), tiny_hypernetwork()
    if checkpointing:
        unet.enable_gradient_checkpointing()
    HypernetworkUNet(unet, hypernetwork)(latents, timesteps, text).square().mean().backward()
    reference = tiny_hypernetwork()
    with_hooks(tiny_unet(), [(reference, 1.0)])(latents, timesteps, text).sample.square().mean().backward()
    for (name, ours), theirs in zip(hypernetwork.named_parameters(), reference.parameters()):
        assert theirs.grad.abs().max() > 0, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-6, name


def test_linear_projection_attention_mask_and_other_heads():
    options = {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}
    latents, timesteps, text = unet_inputs()
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    unet, hypernetwork = tiny_unet(**options), tiny_hypernetwork()
    hypernet.attach(unet, hypernetwork)
    result = unet(latents, timesteps, text, encoder_attention_mask=mask).sample
    reference = with_hooks(tiny_unet(**options), [(hypernetwork, 1.0)])
    expected = reference(latents, timesteps, text, encoder_attention_mask=mask).sample
    assert (result - expected).abs().max() < 1e-6


def test_bfloat16_unet_with_float32_hypernetwork():
    latents, timesteps, text = unet_inputs()
    unet, hypernetwork = tiny_unet().to(torch.bfloat16), tiny_hypernetwork()
    hypernet.attach(unet, hypernetwork)
    result = unet(latents.bfloat16(), timesteps, text.bfloat16()).sample
    expected = with_hooks(tiny_unet(), [(hypernetwork, 1.0)])(latents, timesteps, text).sample
    assert result.dtype == torch.bfloat16 and hypernetwork.dtype == torch.float32
    assert (result.float() - expected).norm() / expected.norm() < 0.03
