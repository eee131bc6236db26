"""A UNet's stack of hypernetworks: when the text is transformed, and when a linear hypernetwork runs as a map."""

import pytest
import torch

import hypernet
from hypernet.modeling.linear_map import MapPlan
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import generate, tiny_hypernetwork, tiny_pipeline, tiny_unet, unet_inputs

SIZE = {"width": 64, "height": 64}


def count_text_transforms(hypernetwork):
    """Return a list that grows by one with each call of the module for the text's keys."""
    calls = []
    hypernetwork.pairs["12"]["k"].register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_text_is_transformed_once_per_training_step():
    unet, hypernetwork = tiny_unet(), tiny_hypernetwork()
    calls = count_text_transforms(hypernetwork)
    hypernet.attach(unet, hypernetwork)
    unet(*unet_inputs())
    assert len(calls) == 1


def test_text_is_transformed_once_per_image():
    pipe, hypernetwork = tiny_pipeline(), tiny_hypernetwork().eval()
    calls = count_text_transforms(hypernetwork)
    hypernet.attach(pipe.unet, hypernetwork)
    first = generate(pipe, steps=7, **SIZE)
    assert len(calls) == 1
    second = generate(pipe, "a blue cat", steps=5, **SIZE)
    assert len(calls) == 2 and abs(first - second).max() > 0.01
    for strength in (0.5, 1.0):
        hypernet.set_strength(pipe.unet, strength)
        again = generate(pipe, steps=7, **SIZE)
        assert (again == first).all() == (strength == 1.0)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_text_is_cached_in_every_inference_mode(mode):
    unet = tiny_unet()
    with mode():
        hypernetwork = tiny_hypernetwork().eval()
        calls = count_text_transforms(hypernetwork)
        hypernet.attach(unet, hypernetwork)
        text = torch.randn(1, 7, 12)
        unet(torch.randn(1, 4, 8, 8), 9, text)
    with torch.no_grad():
        unet(torch.randn(1, 4, 8, 8), 8, text)
    assert len(calls) == 1


def test_cached_text_is_never_stale():
    """The next forward gets the same tensor, after a change of strength, weights, precision or the text itself."""
    unet, hypernetwork = tiny_unet(), tiny_hypernetwork().eval()
    hypernet.attach(unet, hypernetwork)
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 12)

    def check():
        with torch.no_grad():
            result = unet(latents, 3, text).sample
            reference = with_hooks(tiny_unet(), list(unet._hypernetworks.layers))
            assert (result - reference(latents, 3, text).sample).abs().max() < 1e-6
        return result

    results = [check()]
    hypernet.set_strength(unet, 0.5)
    results.append(check())
    with torch.no_grad():
        hypernetwork.pairs["12"]["v"].linear[0].weight.mul_(2)
    results.append(check())
    text.mul_(2)
    results.append(check())
    for parameter in hypernetwork.parameters():  # as an EMA is swapped in; leaves no trace
        parameter.data.mul_(1.1)
    results.append(check())
    for parameter in hypernetwork.parameters():
        parameter.data = parameter.data * 0.9
    results.append(check())
    text.numpy()[:] += 1
    results.append(check())
    hypernetwork.load_state_dict(tiny_hypernetwork(1).state_dict())
    results.append(check())
    hypernet.attach(unet, tiny_hypernetwork(2).eval(), 0.3)
    results.append(check())
    for before, after in zip(results, results[1:]):
        assert not torch.equal(before, after)


def builds_maps(unet):
    latents, _, text = unet_inputs()
    return bool(unet._hypernetworks.build_maps(unet, latents, text))


@pytest.mark.parametrize(
    "options, training, expected",
    [
        ({}, True, True),
        ({"activation": "relu"}, False, False),
        ({"layer_norm": True}, False, False),
        ({"dropout_structure": (0, 0.3, 0)}, True, False),
        ({"dropout_structure": (0, 0.3, 0)}, False, True),
    ],
)
def test_maps_are_for_linear_modules_without_active_dropout(monkeypatch, options, training, expected):
    monkeypatch.setattr("hypernet.modeling.stack.make_plan", lambda *_: MapPlan(True, 0))
    unet = tiny_unet()
    hypernet.attach(unet, tiny_hypernetwork(**{"activation": "linear", **options}).train(training))
    assert builds_maps(unet) == expected


def test_maps_are_for_one_active_hypernetwork(monkeypatch):
    monkeypatch.setattr("hypernet.modeling.stack.make_plan", lambda *_: MapPlan(True, 0))
    unet = tiny_unet()
    hypernet.attach(unet, tiny_hypernetwork(0, "linear"))
    hypernet.attach(unet, tiny_hypernetwork(1, "linear"), 0.0)
    assert builds_maps(unet)
    hypernet.set_strength(unet, 0.5)
    assert not builds_maps(unet)


def test_maps_need_image_latents_and_a_text():
    unet = tiny_unet()
    hypernet.attach(unet, tiny_hypernetwork(0, "linear"))
    build_maps = unet._hypernetworks.build_maps
    assert build_maps(unet, torch.zeros(1, 4, 3, 8, 8), torch.zeros(1, 7, 12)) == {}
    assert build_maps(unet, torch.zeros(1, 4, 8, 8), None) == {}
