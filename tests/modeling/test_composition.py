"""Several hypernetworks as one: in sequence and in parallel, attached like a hypernetwork, against plain sums."""

import pytest
import torch

import hypernet
from hypernet.modeling.composition import Composition
from tests.helpers.tiny_models import generate, tiny_pipeline, tiny_unet, trained_hypernetwork, unet_inputs

SIZE = {"width": 64, "height": 64}


def test_a_sequence_is_what_a_stack_computes():
    stacked, composed = tiny_pipeline(), tiny_pipeline()
    one, other = trained_hypernetwork(1), trained_hypernetwork(2, "relu", widths=(12, 32))
    for hypernetwork, strength in ((one, 0.5), (other, -0.3)):
        hypernet.attach(stacked.unet, hypernetwork, strength)
    stacked.unet._hypernetworks.use_linear_maps = False
    hypernet.attach(composed.unet, Composition("both", [(one, 0.5), (other, -0.3)]))
    assert (generate(composed, **SIZE) == generate(stacked, **SIZE)).all()


def test_a_mean_is_the_weighted_sum_of_the_outputs():
    """A width that one of them lacks passes through it unchanged."""
    one, other = trained_hypernetwork(1), trained_hypernetwork(2, "relu", widths=(12,))
    mean, context = Composition("mean", [(one, 0.5), (other, 1.0)], [3, 1]), torch.randn(2, 5, 12)
    for found, first, second in zip(mean(context), one(context, 0.5), other(context)):
        assert torch.equal(found, 0.75 * first + 0.25 * second)
    wide = torch.randn(2, 5, 16)
    assert torch.equal(mean(wide)[1], 0.75 * one(wide, 0.5)[1] + 0.25 * wide)
    value = torch.randn(2, 5, 12)
    nested = Composition("nested", [(mean, 1.0), (one, 0.2)])
    key, last = mean(context, 1.0, value)
    assert all(map(torch.equal, nested(context, 1.0, value), one(key, 0.2, last)))
    for scaled, whole, x in zip(nested(context, 0.3, value), nested(context, 1.0, value), (context, value)):
        torch.testing.assert_close(scaled, x + 0.3 * (whole - x))


def test_its_strength_can_change_and_detaching_restores_the_unet():
    unet, inputs = tiny_unet(), unet_inputs()
    plain = unet(*inputs).sample
    composition = Composition("mean", [(trained_hypernetwork(seed), 1.0) for seed in (1, 2)], [1, 1])
    hypernet.attach(unet, composition, 0.7)
    with torch.no_grad():
        some = unet(*inputs).sample
        hypernet.set_strength(unet, 0.0, composition)
        assert torch.equal(unet(*inputs).sample, plain)
        hypernet.set_strength(unet, 0.7)
        assert torch.equal(unet(*inputs).sample, some) and not torch.equal(some, plain)
        next(composition.hypernetworks()).pairs["12"]["k"].linear[0].weight.mul_(2)  # the text's cache notices
        assert not torch.equal(unet(*inputs).sample, some)
    hypernet.detach(unet, composition)
    assert torch.equal(unet(*inputs).sample, plain)


def test_one_of_another_kind_of_model_is_refused():
    composition = Composition("both", [(trained_hypernetwork(), 1.0), (trained_hypernetwork(widths=(24,)), 1.0)])
    with pytest.raises(ValueError, match="24"):
        hypernet.attach(tiny_unet(), composition)
    with pytest.raises(TypeError, match="Composition"):
        hypernet.fuse(tiny_unet(), composition)
