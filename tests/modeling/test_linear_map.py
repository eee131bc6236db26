"""Linear hypernetworks as maps: same outputs and gradients as module by module, and the counts that choose the way."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import hypernet
from hypernet import Hypernetwork, HypernetworkUNet
from hypernet.modeling.attachment import attention_layers
from hypernet.modeling.linear_map import MapPlan, build_map, linear_map, make_plan, tokens_per_layer
from hypernet.modeling.structure import SKIP_CONNECTIONS
from tests.helpers.references import with_hooks
from tests.helpers.tiny_models import tiny_hypernetwork, tiny_unet, unet_inputs

PLANS = {
    "counted": None,
    "map": MapPlan(True, math.inf),
    "fused": MapPlan(True, 0),
    "modules": MapPlan(False, math.inf),
}


def style(structure=(1, 2, 1), **options):
    return tiny_hypernetwork(activation="linear", layer_structure=structure, biases=True, **options)


def use_plan(monkeypatch, plan):
    """Use this plan for every width; the counted ones if it is None."""
    if plan is not None:
        monkeypatch.setattr("hypernet.modeling.stack.make_plan", lambda *_: plan)


@pytest.mark.parametrize("skip", [None, *SKIP_CONNECTIONS])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 1.5, 1), (1, 0.3, 1)])
def test_map_of_a_module(structure, skip):
    hypernetwork = style(structure, dropout_structure=(0,) * len(structure), skip_connection=skip).eval()
    module, x = hypernetwork.pairs["16"]["v"], torch.randn(5, 16)
    matrix, bias = linear_map(module)
    assert (x.double() @ matrix.T + bias - module(x)).abs().max() < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("skip", [None, *SKIP_CONNECTIONS])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 0.5, 1)])
@pytest.mark.parametrize("plan", PLANS)
def test_outputs_and_gradients_match_the_reference(monkeypatch, plan, structure, skip, checkpointing):
    use_plan(monkeypatch, PLANS[plan])
    unet, hypernetwork, reference = tiny_unet(), *(style(structure, skip_connection=skip) for _ in range(2))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    result = HypernetworkUNet(unet, hypernetwork)(*unet_inputs())
    expected = with_hooks(tiny_unet(), [(reference, 1.0)])(*unet_inputs()).sample
    assert (result - expected).abs().max() < 1e-5
    result.square().mean().backward()
    expected.square().mean().backward()
    for (name, ours), theirs in zip(hypernetwork.named_parameters(), reference.parameters()):
        assert theirs.grad.abs().max() > 0, name
        assert (ours.grad - theirs.grad).abs().max() < 1e-5, name
    maps = unet._hypernetworks.build_maps(unet, *unet_inputs()[::2])
    assert bool(maps) == (plan != "modules")


def train_in_bfloat16(monkeypatch, plan):
    """Return the output, and all gradients as one vector, with the UNet in bfloat16 and the hypernetwork in float32."""
    with monkeypatch.context() as patch:
        use_plan(patch, plan)
        hypernetwork = style()
        model = HypernetworkUNet(tiny_unet().to(torch.bfloat16), hypernetwork)
        latents, timesteps, text = unet_inputs()
        with torch.autocast("cpu", torch.bfloat16):
            result = model(latents.bfloat16(), timesteps, text.bfloat16()).float()
        result.square().mean().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in hypernetwork.parameters())
    return result.detach(), torch.cat([weight.grad.flatten() for weight in hypernetwork.parameters()])


@pytest.mark.parametrize("plan", ["counted", "map", "fused"])
def test_bfloat16_is_as_accurate_as_module_by_module(monkeypatch, plan):
    reference = style()
    exact = with_hooks(tiny_unet(), [(reference, 1.0)])(*unet_inputs()).sample
    exact.square().mean().backward()
    gradients = torch.cat([weight.grad.flatten() for weight in reference.parameters()])
    ours = train_in_bfloat16(monkeypatch, PLANS[plan])
    plain = train_in_bfloat16(monkeypatch, PLANS["modules"])
    for mine, theirs, right in zip(ours, plain, (exact.detach(), gradients)):
        error, usual = (mine - right).norm() / right.norm(), (theirs - right).norm() / right.norm()
        assert error < max(1e-2, 1.5 * usual), (error, usual)


@pytest.mark.parametrize("strength", [0.7, -1.0])
def test_inference_at_other_strengths(monkeypatch, strength):
    for plan in PLANS.values():
        with monkeypatch.context() as patch, torch.no_grad():
            use_plan(patch, plan)
            unet, hypernetwork = tiny_unet(), style().eval()
            hypernet.attach(unet, hypernetwork, strength)
            expected = with_hooks(tiny_unet(), [(hypernetwork, strength)])(*unet_inputs()).sample
            assert (unet(*unet_inputs()).sample - expected).abs().max() < 1e-5


def test_subclass_of_linear_is_not_fused(monkeypatch):
    class Other(torch.nn.Linear):
        pass

    use_plan(monkeypatch, MapPlan(True, 0))
    unet, reference = tiny_unet(), tiny_unet()
    for layer in attention_layers(unet).values():
        other = Other(layer.to_k.in_features, layer.to_k.out_features, bias=False)
        other.weight = layer.to_k.weight
        layer.to_k = other
    hypernet.attach(unet, style())
    expected = with_hooks(reference, [(style(), 1.0)])(*unet_inputs()).sample
    assert (unet(*unet_inputs()).sample - expected).abs().max() < 1e-5


def test_hooks_on_a_projection_are_called(monkeypatch):
    use_plan(monkeypatch, MapPlan(True, 0))
    unet, reference = tiny_unet(), tiny_unet()
    for model in (unet, reference):
        for layer in attention_layers(model).values():
            layer.to_k.register_forward_hook(lambda module, args, output: 2 * output)
    hypernet.attach(unet, style())
    expected = with_hooks(reference, [(style(), 1.0)])(*unet_inputs()).sample
    assert (unet(*unet_inputs()).sample - expected).abs().max() < 1e-5


def test_replaced_forward_of_a_projection_is_called(monkeypatch):
    """Accelerate's offloading replaces a module's forward and takes its weight away."""
    use_plan(monkeypatch, MapPlan(True, 0))
    unet = tiny_unet()
    for layer in attention_layers(unet).values():
        layer.to_v.forward = lambda x, module=layer.to_v: torch.nn.functional.linear(x, 3 * module.weight)
    hypernet.attach(unet, style())
    with monkeypatch.context() as patch:
        plain = unet(*unet_inputs()).sample
        patch.setattr(unet._hypernetworks, "use_linear_maps", False)
        assert (unet(*unet_inputs()).sample - plain).abs().max() < 1e-5


def flops(run):
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.5, 3, 1)])
@pytest.mark.parametrize("width, tokens", [(8, 4), (8, 8), (8, 9), (8, 100), (32, 5)])
def test_plan_is_the_cheapest_by_torch_counts(structure, width, tokens):
    """One frozen layer whose context needs a gradient, in each way. FLOPs are twice the multiply-adds."""
    module = Hypernetwork((width,), structure).pairs[str(width)]["k"]
    projection = torch.nn.Linear(width, width, bias=False).requires_grad_(False)

    def step(way):
        x = torch.randn(1, tokens, width, requires_grad=True)
        if way == "none":
            result = projection(x)
        elif way == "modules":
            result = projection(x + module(x))
        else:
            result = build_map(module, 1.0, 0 if way == "fused" else math.inf).project(projection, x)
        result.sum().backward()

    def cost(way):
        return (flops(lambda: step(way)) - flops(lambda: step("none"))) / 2

    costs = {way: cost(way) for way in ("modules", "map", "fused")}
    plan = make_plan(structure, width, [(tokens, width)], training=True)
    chosen = "modules" if not plan.use_map else "fused" if tokens >= plan.fuse_from else "map"
    biases = 10 * max(int(multiple * width) for multiple in structure) * width * len(structure)  # not counted by plans
    assert costs[chosen] <= min(costs.values()) + biases
    if len(structure) > 2:
        maps_win = min(costs["map"], costs["fused"]) < costs["modules"]
        assert plan.use_map == maps_win or abs(costs["modules"] - min(costs.values())) < biases


@pytest.mark.parametrize("height, width", [(8, 8), (9, 14)])
def test_tokens_per_layer(height, width):
    unet, seen = tiny_unet(), {}
    for name, layer in attention_layers(unet).items():
        layer.register_forward_pre_hook(
            lambda module, args, name=name: seen.update({name: args[0].shape[0] * args[0].shape[1]})
        )
    unet(torch.randn(3, 4, height, width), 5, torch.randn(3, 7, 12))
    assert tokens_per_layer(attention_layers(unet), len(unet.config.block_out_channels), 3, height, width) == seen
