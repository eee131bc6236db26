"""Attention with hypernetworks against a plain re-computation: forward hooks that replace what to_k and to_v get."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention

import hypernet
from hypernet import Hypernetwork, HypernetworkUNet
from tests.helpers.tiny_models import TINY_WIDTHS, tiny_unet


def inputs(seed=1):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    return latents, torch.tensor([3, 900]), torch.randn(2, 7, 12, generator=generator)


def plain_hypernetwork(seed, **options):
    torch.manual_seed(seed)
    return Hypernetwork(TINY_WIDTHS, weight_init="kaiming_normal", activation="relu", **options)


def with_hooks(unet, stack):
    """The same mathematics on an untouched UNet: x -> x + s * mlp(x), one hypernetwork after the other, per layer."""

    def hook(part):
        def replace(module, args):
            x = args[0]
            for hypernetwork, strength in stack:
                x = x + strength * hypernetwork.pairs[str(x.shape[-1])][part](x)
            return (x,)

        return replace

    for module in unet.modules():
        if isinstance(module, Attention):
            module.to_k.register_forward_pre_hook(hook("k"))
            module.to_v.register_forward_pre_hook(hook("v"))
    return unet


@pytest.mark.parametrize("strengths", [(1.0,), (0.4,), (1.0, 0.5), (0.0, 0.7)])
def test_output_equals_the_plain_computation(strengths):
    unet, stack = tiny_unet(), [(plain_hypernetwork(i), strength) for i, strength in enumerate(strengths)]
    for hypernetwork, strength in stack:
        hypernet.attach(unet, hypernetwork, strength)
    latents, timesteps, text = inputs()
    expected = with_hooks(tiny_unet(), stack)(latents, timesteps, text).sample
    for result in (unet(latents, timesteps, text), unet(latents, timesteps, encoder_hidden_states=text)):
        assert (result.sample - expected).abs().max() < 1e-6
    assert (expected - tiny_unet()(latents, timesteps, text).sample).abs().max() > 1e-3


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_the_plain_computation(checkpointing):
    latents, timesteps, text = inputs()
    unet, hypernetwork = tiny_unet(), plain_hypernetwork(0)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    HypernetworkUNet(unet, hypernetwork)(latents, timesteps, text).square().mean().backward()
    reference = plain_hypernetwork(0)
    with_hooks(tiny_unet(), [(reference, 1.0)])(latents, timesteps, text).sample.square().mean().backward()
    for (name, ours), theirs in zip(hypernetwork.named_parameters(), reference.parameters()):
        assert theirs.grad.abs().max() > 0, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-6, name


def test_linear_projection_attention_mask_and_heads_of_other_unets():
    options = {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True}
    latents, timesteps, text = inputs()
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    unet, hypernetwork = tiny_unet(**options), plain_hypernetwork(0)
    hypernet.attach(unet, hypernetwork)
    result = unet(latents, timesteps, text, encoder_attention_mask=mask).sample
    expected = with_hooks(tiny_unet(**options), [(hypernetwork, 1.0)])(
        latents, timesteps, text, encoder_attention_mask=mask
    )
    assert (result - expected.sample).abs().max() < 1e-6


def test_strength_zero_and_detached_are_bit_identical():
    unet = tiny_unet()
    processors, keys, arguments = dict(unet.attn_processors), list(unet.state_dict()), inputs()
    plain = unet(*arguments).sample
    hypernet.attach(unet, plain_hypernetwork(0), 0.0)
    assert torch.equal(unet(*arguments).sample, plain)
    hypernet.attach(unet, plain_hypernetwork(1))
    assert not torch.equal(unet(*arguments).sample, plain)
    assert list(unet.state_dict()) == keys
    hypernet.detach(unet)
    hypernet.detach(unet)
    assert all(unet.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.equal(unet(*arguments).sample, plain)


def test_half_precision_unet_with_float32_hypernetwork():
    latents, timesteps, text = inputs()
    unet, hypernetwork = tiny_unet().to(torch.bfloat16), plain_hypernetwork(0)
    hypernet.attach(unet, hypernetwork)
    result = unet(latents.bfloat16(), timesteps, text.bfloat16()).sample
    expected = with_hooks(tiny_unet(), [(hypernetwork, 1.0)])(latents, timesteps, text).sample
    assert result.dtype == torch.bfloat16 and hypernetwork.dtype == torch.float32
    assert (result.float() - expected).norm() / expected.norm() < 0.03


def test_text_is_transformed_once_per_forward():
    unet, hypernetwork, calls = tiny_unet(), plain_hypernetwork(0), []
    hypernetwork.pairs["12"]["k"].register_forward_hook(lambda *_: calls.append(1))
    hypernet.attach(unet, hypernetwork)
    unet(*inputs())
    assert len(calls) == 1


def test_every_attention_layer_of_sd15_is_reached():
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
        hypernet.attach(unet, Hypernetwork())
        layers = [module for module in unet.modules() if isinstance(module, Attention)]
        processors = {type(layer.processor).__name__ for layer in layers}
    assert len(layers) == 32 and processors == {"HypernetworkAttnProcessor"}
