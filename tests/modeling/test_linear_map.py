"""Linear hypernetworks with less arithmetic: the plain form's outputs and gradients, and the counts that choose."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hypernet
from hypernet import Hypernetwork, HypernetworkUNet
from hypernet.modeling.attachment import attention_layers
from hypernet.modeling.linear_map import MapPlan, build_map, make_plan, tokens_per_layer
from tests.helpers.tiny_models import tiny_unet
from tests.modeling.test_attachment import inputs, with_hooks

WIDTHS = (12, 16, 32)


def style(structure=(1, 2, 1), seed=0, **options):
    torch.manual_seed(seed)
    hypernetwork = Hypernetwork(WIDTHS, structure, weight_init="kaiming_normal", **options)
    for parameter in hypernetwork.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return hypernetwork


def choose(monkeypatch, plan):
    """Let every width have this plan, or the counted one."""
    if plan is not None:
        monkeypatch.setattr("hypernet.modeling.stack.make_plan", lambda *_: plan)


PLANS = {"counted": None, "maps": MapPlan(True, math.inf), "folded": MapPlan(True, 0), "plain": MapPlan(False, math.inf)}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 0.5, 1)])
@pytest.mark.parametrize("plan", PLANS)
def test_outputs_and_gradients_are_the_plain_forms(monkeypatch, plan, structure, checkpointing):
    choose(monkeypatch, PLANS[plan])
    unet, hypernetwork, reference = tiny_unet(), style(structure), style(structure)
    if checkpointing:
        unet.enable_gradient_checkpointing()
    result = HypernetworkUNet(unet, hypernetwork)(*inputs())
    expected = with_hooks(tiny_unet(), [(reference, 1.0)])(*inputs()).sample
    assert (result - expected).abs().max() < 1e-5
    result.square().mean().backward()
    expected.square().mean().backward()
    for (name, ours), theirs in zip(hypernetwork.named_parameters(), reference.parameters()):
        assert theirs.grad.abs().max() > 0, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-5, name
    maps = unet._hypernetworks.build_maps(unet, *inputs()[::2])
    assert {"counted": True, "maps": True, "folded": True, "plain": False}[plan] == bool(maps)


def in_bfloat16(monkeypatch, plan):
    """Output and all gradients as one vector, as the training computes: UNet in half, the hypernetwork in float32."""
    with monkeypatch.context() as patch:
        choose(patch, plan)
        hypernetwork = style()
        model = HypernetworkUNet(tiny_unet().to(torch.bfloat16), hypernetwork)
        latents, timesteps, text = inputs()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(latents.bfloat16(), timesteps, text.bfloat16()).float()
        result.square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in hypernetwork.parameters())
    return result.detach(), torch.cat([weight.grad.flatten() for weight in hypernetwork.parameters()])


@pytest.mark.parametrize("plan", ["counted", "maps", "folded"])
def test_in_bfloat16_it_is_as_near_as_the_plain_form(monkeypatch, plan):
    reference = style()
    exact = with_hooks(tiny_unet(), [(reference, 1.0)])(*inputs()).sample
    exact.square().mean().backward()
    gradients = torch.cat([weight.grad.flatten() for weight in reference.parameters()])
    ours, plain = in_bfloat16(monkeypatch, PLANS[plan]), in_bfloat16(monkeypatch, PLANS["plain"])
    for mine, theirs, right in zip(ours, plain, (exact.detach(), gradients)):
        error, usual = (mine - right).norm() / right.norm(), (theirs - right).norm() / right.norm()
        assert error < max(1e-2, 1.5 * usual), (error, usual)


@pytest.mark.parametrize("strength", [0.7, -1.0])
def test_strengths_and_drawing(monkeypatch, strength):
    for plan in PLANS.values():
        with monkeypatch.context() as patch, torch.no_grad():
            choose(patch, plan)
            unet, hypernetwork = tiny_unet(), style().eval()
            hypernet.attach(unet, hypernetwork, strength)
            expected = with_hooks(tiny_unet(), [(hypernetwork, strength)])(*inputs()).sample
            assert (unet(*inputs()).sample - expected).abs().max() < 1e-5


def test_where_the_plain_path_is_taken(monkeypatch):
    """Activations, LayerNorms, dropout at work, several hypernetworks; dropout that rests is no hindrance."""
    choose(monkeypatch, MapPlan(True, 0))
    for options, training, folded in [
        ({}, True, True),
        ({"activation": "relu"}, False, False),
        ({"layer_norm": True}, False, False),
        ({"dropout_structure": (0, 0.3, 0)}, True, False),
        ({"dropout_structure": (0, 0.3, 0)}, False, True),
    ]:
        unet = tiny_unet()
        hypernet.attach(unet, style(**options).train(training))
        assert bool(unet._hypernetworks.build_maps(unet, *inputs()[::2])) == folded, options
    hypernet.attach(unet, style(seed=1), 0.0)
    assert unet._hypernetworks.build_maps(unet, *inputs()[::2])
    hypernet.set_strength(unet, 0.5)
    assert not unet._hypernetworks.build_maps(unet, *inputs()[::2])


def test_a_projection_that_is_no_plain_linear_is_not_folded(monkeypatch):
    class Other(torch.nn.Linear):
        pass

    choose(monkeypatch, MapPlan(True, 0))
    unet, reference = tiny_unet(), tiny_unet()
    for layer in attention_layers(unet).values():
        other = Other(layer.to_k.in_features, layer.to_k.out_features, bias=False)
        other.weight = layer.to_k.weight
        layer.to_k = other
    hypernet.attach(unet, style())
    expected = with_hooks(reference, [(style(), 1.0)])(*inputs()).sample
    assert (unet(*inputs()).sample - expected).abs().max() < 1e-5


def test_what_hangs_on_a_projection_is_not_lost(monkeypatch):
    """Hooks, and accelerate's offloading, which replaces a module's forward and takes its weight away."""
    choose(monkeypatch, MapPlan(True, 0))
    unet, reference = tiny_unet(), tiny_unet()
    for model in (unet, reference):
        for layer in attention_layers(model).values():
            layer.to_k.register_forward_hook(lambda module, args, output: 2 * output)
    hypernet.attach(unet, style())
    expected = with_hooks(reference, [(style(), 1.0)])(*inputs()).sample
    assert (unet(*inputs()).sample - expected).abs().max() < 1e-5

    unet = tiny_unet()
    for layer in attention_layers(unet).values():
        layer.to_v.forward = lambda x, module=layer.to_v: torch.nn.functional.linear(x, 3 * module.weight)
    hypernet.attach(unet, style())
    with monkeypatch.context() as patch:
        plain = unet(*inputs()).sample
        patch.setattr(unet._hypernetworks, "folding", False)
        assert (unet(*inputs()).sample - plain).abs().max() < 1e-5


def test_other_latents_and_no_text_take_the_plain_path():
    unet = tiny_unet()
    hypernet.attach(unet, style())
    assert unet._hypernetworks.build_maps(unet, torch.zeros(1, 4, 3, 8, 8), torch.zeros(1, 7, 12)) == {}
    assert unet._hypernetworks.build_maps(unet, torch.zeros(1, 4, 8, 8), None) == {}


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.5, 3, 1)])
@pytest.mark.parametrize("width, tokens", [(8, 4), (8, 8), (8, 9), (8, 100), (32, 5)])
def test_the_counts_are_what_torch_counts(structure, width, tokens):
    """One frozen layer in the three ways, its context wanting a gradient; twice the multiply-adds are FLOPs."""
    sizes = [int(multiple * width) for multiple in structure]
    module = Hypernetwork((width,), structure).pairs[str(width)]["k"]
    projection = torch.nn.Linear(width, width, bias=False).requires_grad_(False)

    def step(way):
        x = torch.randn(1, tokens, width, requires_grad=True)
        if way == "none":
            result = projection(x)
        elif way == "plain":
            result = projection(x + module(x))
        else:
            result = build_map(module, 1.0, 0 if way == "folded" else math.inf).project(projection, x)
        result.sum().backward()

    cost = {
        way: (flops(lambda way=way: step(way)) - flops(lambda: step("none"))) / 2 for way in ("plain", "map", "folded")
    }
    plan = make_plan(structure, width, [(tokens, width)], training=True)
    vectors = 10 * max(sizes) * width * len(structure)  # of the biases, which are not counted
    least = min(cost, key=cost.get)
    chosen = "plain" if not plan.build else "folded" if tokens >= plan.fuse_from else "map"
    assert cost[chosen] <= cost[least] + vectors
    if len(structure) > 2:
        assert (
            plan.build == (min(cost["map"], cost["folded"]) < cost["plain"])
            or abs(cost["plain"] - cost[least]) < vectors
        )


@pytest.mark.parametrize("height, width", [(8, 8), (9, 14)])
def test_tokens_of_every_layer(height, width):
    unet, seen = tiny_unet(), {}
    for name, layer in attention_layers(unet).items():
        layer.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].shape[0] * args[0].shape[1]})
        )
    unet(torch.randn(3, 4, height, width), 5, torch.randn(3, 7, 12))
    assert tokens_per_layer(unet, 3, height, width) == seen
