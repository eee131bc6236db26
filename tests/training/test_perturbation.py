"""The perturbation against its definition, on contexts recorded by hooks."""

import pytest
import torch

import hypernet
from hypernet.training.perturbation import CONTEXTS_PER_LAYER, Perturbation
from tests.helpers.tiny_models import open_models


def test_perturbation_is_relative_to_the_contexts(models_dir):
    models = open_models(models_dir / "epsilon")
    hypernetwork = hypernet.Hypernetwork([12, 32], weight_init="kaiming_normal", dropout_structure=[0, 0.5, 0]).train()
    contexts, hooks = {}, []

    def record(module, args):
        contexts.setdefault(args[0].shape[-1], []).append(args[0].flatten(0, 1))

    for name, layer in models.unet.named_modules():
        if name.endswith("to_k"):
            hooks.append(layer.register_forward_pre_hook(record))
    latents, text, timesteps = torch.randn(1, 4, 8, 8), torch.randn(1, 20, 12), torch.tensor([5])
    with torch.no_grad():
        models.unet(latents, timesteps, text)
    for hook in hooks:
        hook.remove()
    unet = hypernet.HypernetworkUNet(models.unet, hypernetwork)
    perturbation = Perturbation(models.unet, latents, timesteps, {"encoder_hidden_states": text})
    measured = perturbation.measure(hypernetwork)
    assert hypernetwork.training and sorted(measured) == ["effect/12", "effect/32"]
    hypernetwork.eval()
    for width in (12, 32):
        spread = [c[torch.linspace(0, len(c) - 1, min(CONTEXTS_PER_LAYER, len(c))).long()] for c in contexts[width]]
        x = torch.cat(spread)
        with torch.no_grad():
            added = torch.cat([transformed - x for transformed in hypernetwork(x[None])], 1)
        assert measured[f"effect/{width}"] == pytest.approx((added.norm() / torch.cat([x, x]).norm()).item(), rel=1e-5)
    assert unet(latents, timesteps, text).shape == latents.shape  # still attached


def test_change_is_that_of_what_is_added(models_dir):
    models = open_models(models_dir / "epsilon")
    hypernetwork = hypernet.Hypernetwork([12, 32], weight_init="kaiming_normal")
    hypernet.attach(models.unet, hypernetwork)
    latents, text, timesteps = torch.randn(1, 4, 8, 8), torch.randn(1, 20, 12), torch.tensor([5])
    perturbation = Perturbation(models.unet, latents, timesteps, {"encoder_hidden_states": text})
    assert perturbation.change(hypernetwork) is None
    perturbation.start(hypernetwork)
    assert perturbation.change(hypernetwork) == 0
    before = perturbation.measure(hypernetwork)
    with torch.no_grad():  # all that is added becomes 1.5 times as large
        for pair in hypernetwork.pairs["32"].values():
            pair.linear[-1].weight *= 1.5
    assert perturbation.change(hypernetwork) == pytest.approx(before["effect/32"] / 2, rel=1e-5)
