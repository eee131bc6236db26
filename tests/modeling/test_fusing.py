"""Fuse into a UNet, against the hypernetwork attached."""

import numpy as np
import pytest
import torch

import hypernet
from tests.helpers.tiny_models import generate, tiny_pipeline, tiny_unet, trained_hypernetwork, unet_inputs

SIZE = {"width": 64, "height": 64}


@pytest.mark.parametrize("strength, skip", [(1.0, None), (0.6, None), (-0.5, None), (0.4, "nearest"), (1, "linear")])
def test_fused_generates_what_attached_generates(strength, skip):
    attached, fused = tiny_pipeline(), tiny_pipeline()
    plain = generate(attached, **SIZE)
    hypernet.attach(attached.unet, trained_hypernetwork(skip_connection=skip), strength)
    hypernet.fuse(fused.unet, trained_hypernetwork(skip_connection=skip), strength)
    expected = generate(attached, **SIZE)
    assert np.abs(generate(fused, **SIZE) - expected).max() < 1e-4
    assert np.abs(expected - plain).max() > 0.05
    assert not any(parameter.requires_grad for parameter in fused.unet.parameters())


def test_fused_and_attached_stack():
    stacked, mixed, twice = tiny_pipeline(), tiny_pipeline(), tiny_pipeline()
    hypernet.attach(stacked.unet, trained_hypernetwork(1), 0.5)
    hypernet.attach(stacked.unet, trained_hypernetwork(2), 0.5)
    hypernet.fuse(mixed.unet, trained_hypernetwork(2), 0.5)
    hypernet.attach(mixed.unet, trained_hypernetwork(1), 0.5)
    expected = generate(stacked, **SIZE)
    assert np.abs(generate(mixed, **SIZE) - expected).max() < 1e-4
    hypernet.fuse(twice.unet, trained_hypernetwork(2), 0.5)
    hypernet.fuse(twice.unet, trained_hypernetwork(1), 0.5)
    assert np.abs(generate(twice, **SIZE) - expected).max() < 1e-4


def test_fused_costs_no_more_than_the_plain_unet():
    """A hypernetwork without biases leaves no biases behind either."""
    unet = tiny_unet()

    def flops():
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*unet_inputs())
        return counter.get_total_flops()

    plain, keys = flops(), list(unet.state_dict())
    hypernet.attach(unet, trained_hypernetwork())
    assert flops() > plain
    hypernet.detach(unet)
    hypernet.fuse(unet, trained_hypernetwork(biases=False))
    assert flops() == plain and list(unet.state_dict()) == keys
    hypernet.fuse(unet, trained_hypernetwork())
    assert flops() == plain


def use_fused_projections(unet):
    unet.fuse_qkv_projections()


def replace_last_projection(unet):
    unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v = torch.nn.Identity()


@pytest.mark.parametrize(
    "hypernetwork, change, named",
    [
        ({"activation": "relu"}, None, "relu"),
        ({"layer_norm": True}, None, "LayerNorm"),
        ({}, use_fused_projections, "fuse_qkv_projections"),
        ({}, replace_last_projection, "to_v.*Identity"),
    ],
)
def test_refused_fusing_changes_nothing(hypernetwork, change, named):
    unet = tiny_unet()
    if change:
        change(unet)
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    with pytest.raises(ValueError, match=named):
        hypernet.fuse(unet, trained_hypernetwork(**hypernetwork))
    after = unet.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(tensor, after[name]) for name, tensor in before.items())
