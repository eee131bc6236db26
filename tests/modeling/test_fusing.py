"""Folding into a UNet, averaging and LoRAs, against the hypernetwork itself."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import hypernet
from hypernet import Hypernetwork
from hypernet.formats.lora import peft_path, save_lora
from hypernet.modeling.hypernetwork import without_dropout
from hypernet.modeling.linear_map import linear_map
from hypernet.modeling.lora_approximation import gather_contexts, normal_contexts, to_lora
from tests.helpers.tiny_models import tiny_unet
from tests.modeling.test_pipelines import draw, pipeline

SIZE = {"width": 64, "height": 64}


def style(seed=0, activation="linear", structure=(1, 2, 1), **options):
    """With biases, which training soon has."""
    torch.manual_seed(seed)
    hypernetwork = Hypernetwork((12, 16, 32), structure, activation, "kaiming_normal", **options).eval()
    for parameter in hypernetwork.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return hypernetwork.requires_grad_(False)


@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 1.5, 1.5, 1)])
def test_the_map_of_a_linear_module(structure):
    module, x = style(structure=structure, dropout_structure=(0,) * len(structure)).pairs["16"]["v"], torch.randn(5, 16)
    matrix, bias = linear_map(module)
    assert (x.double() @ matrix.T + bias - module(x)).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [1.0, 0.6, -0.5])
def test_merged_draws_what_attached_draws(strength):
    attached, merged = pipeline(), pipeline()
    plain = draw(attached, **SIZE)
    hypernet.attach(attached.unet, style(), strength)
    hypernet.fuse(merged.unet, style(), strength)
    expected = draw(attached, **SIZE)
    assert np.abs(draw(merged, **SIZE) - expected).max() < 1e-4
    assert np.abs(expected - plain).max() > 0.05
    assert not any(parameter.requires_grad for parameter in merged.unet.parameters())


def test_merged_and_attached_act_one_after_the_other():
    stacked, mixed = pipeline(), pipeline()
    hypernet.attach(stacked.unet, style(1), 0.5)
    hypernet.attach(stacked.unet, style(2), 0.5)
    hypernet.fuse(mixed.unet, style(2), 0.5)
    hypernet.attach(mixed.unet, style(1), 0.5)
    expected = draw(stacked, **SIZE)
    assert np.abs(draw(mixed, **SIZE) - expected).max() < 1e-4
    twice = pipeline()
    hypernet.fuse(twice.unet, style(2), 0.5)
    hypernet.fuse(twice.unet, style(1), 0.5)
    assert np.abs(draw(twice, **SIZE) - expected).max() < 1e-4


def test_merged_computes_as_much_as_the_plain_unet():
    """The count of products is the plain one; hypernetworks without biases leave no biases behind, either."""
    unet, arguments = tiny_unet(), (torch.randn(1, 4, 8, 8), 3, torch.randn(1, 7, 12))

    def flops():
        with torch.utils.flop_counter.FlopCounterMode(display=False) as counter, torch.no_grad():
            unet(*arguments)
        return counter.get_total_flops()

    plain, keys = flops(), list(unet.state_dict())
    hypernet.attach(unet, style())
    assert flops() > plain
    hypernet.detach(unet)
    torch.manual_seed(0)
    hypernet.fuse(unet, Hypernetwork((12, 16, 32)).eval())
    assert flops() == plain and list(unet.state_dict()) == keys
    hypernet.fuse(unet, style())
    assert flops() == plain


def test_what_cannot_be_merged_changes_nothing():
    unet = tiny_unet()
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    for hypernetwork, message in [
        (style(activation="relu"), "has the activation relu"),
        (style(layer_norm=True), "has LayerNorm"),
    ]:
        with pytest.raises(ValueError, match=f"{message}, so it is no linear map .* attach it instead"):
            hypernet.fuse(unet, hypernetwork)
    fused = tiny_unet()
    fused.fuse_qkv_projections()
    with pytest.raises(ValueError, match="projections are fused"):
        hypernet.fuse(fused, style())
    unet.up_blocks[1].attentions[0].transformer_blocks[0].attn2.to_v = torch.nn.Identity()  # the last in line
    with pytest.raises(ValueError, match="is a Identity, no plain Linear"):
        hypernet.fuse(unet, style())
    after = unet.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items() if name in after)


def test_average():
    one, other = style(1, dropout_structure=(0, 0.3, 0), step=5), style(2, step=9)
    mean = hypernet.average([one, other], [3, 1])
    assert mean.config.step == 9 and mean.config.dropout_structure is None
    plain = [without_dropout(one).state_dict(), other.state_dict()]
    for name, tensor in mean.state_dict().items():
        assert (tensor - (0.75 * plain[0][name] + 0.25 * plain[1][name])).abs().max() < 1e-6
    for hypernetworks, weights, message in [
        ([one, style(activation="relu")], [1, 1], "activation differs .*: linear, .*: relu.*stack them"),
        ([one, style(structure=(1, 3, 1))], [1, 1], "layer_structure differs"),
        ([one, Hypernetwork((12, 16))], [1, 1], "widths differs"),
        ([one, other], [1, -1], "sum up to 0"),
        ([one, other], [float("inf"), 1], "all must be numbers"),
        ([one, other], [1e308, 1e308], "all must be numbers"),
    ]:
        with pytest.raises(ValueError, match=message):
            hypernet.average(hypernetworks, weights)


def test_without_dropout_draws_the_same():
    hypernetwork, x = style(activation="relu", layer_norm=True, dropout_structure=(0, 0.3, 0)), torch.randn(3, 16)
    plain = without_dropout(hypernetwork)
    assert list(plain.pairs["16"]["k"].state_dict())[-2:] == ["linear.4.weight", "linear.4.bias"]
    assert list(hypernetwork.pairs["16"]["k"].state_dict())[-2:] == ["linear.5.weight", "linear.5.bias"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain(x), hypernetwork(x)))


def loaded_lora(folder, name):
    pipe = pipeline()
    pipe.load_lora_weights(folder, weight_name=name)
    return draw(pipe, **SIZE)


def test_lora_of_a_linear_hypernetwork(tmp_path):
    pipe = pipeline()
    hypernet.attach(pipe.unet, style(), 0.7)
    expected, steps = draw(pipe, **SIZE), {"num_inference_steps": 3, **SIZE}
    hypernet.detach(pipe.unet)
    contexts = gather_contexts(pipe, style(), ["a red star", "a cat"], 0.7, **steps)
    errors = []
    for rank in (2, 8, 32):
        lora = to_lora(pipe.unet, style(), rank, contexts, 0.7)
        save_lora(lora, tmp_path / "style.safetensors")
        errors.append(np.abs(loaded_lora(tmp_path, "style_peft.safetensors") - expected).mean())
        assert set(lora.fitted.values()) == {0.0}
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5  # full rank: the hypernetwork's own picture
    assert all(kept["peft"] > 1 - 1e-9 for kept in lora.kept.values())
    unbiased = style()
    for parameter in unbiased.parameters():
        if parameter.ndim == 1:
            parameter.zero_()
    lora = to_lora(pipe.unet, unbiased, 32, normal_contexts(unbiased), 0.7)
    save_lora(lora, tmp_path / "unbiased.safetensors")
    hypernet.attach(pipe.unet, unbiased, 0.7)
    exact = draw(pipe, **SIZE)
    for name in ("unbiased", "unbiased_peft"):  # without biases kohya's form is exact, too
        assert np.abs(loaded_lora(tmp_path, f"{name}.safetensors") - exact).max() < 1e-4


def test_shares_that_a_lora_keeps_and_its_names(tmp_path):
    """Held against a plain computation: what the files hold, applied to the contexts that were measured on."""
    pipe, hypernetwork = pipeline(), style(activation="relu")
    contexts = gather_contexts(pipe, hypernetwork, ["a red star"], num_inference_steps=4, **SIZE)
    lora = to_lora(pipe.unet, hypernetwork, 4, contexts)
    save_lora(lora, tmp_path / "style.safetensors")
    kohya, peft = load_file(tmp_path / "style.safetensors"), load_file(peft_path(tmp_path / "style.safetensors"))
    sums = {width: [0.0, 0.0, 0.0] for width in contexts}
    for name, layer in pipe.unet.named_modules():
        for part in ("k", "v") if name.endswith(("attn1", "attn2")) else ():
            width = layer.to_k.in_features
            x, key = contexts[width][::5], f"lora_unet_{name.replace('.', '_')}_to_{part}"
            weight = getattr(layer, f"to_{part}").weight
            wanted = hypernetwork.pairs[str(width)][part](x) @ weight.T
            down, up = kohya[f"{key}.lora_down.weight"], kohya[f"{key}.lora_up.weight"]
            ours = x @ down.T @ up.T * kohya[f"{key}.alpha"] / len(down)
            a, b, bias = (peft[f"unet.{name}.to_{part}.lora_{end}"] for end in ("A.weight", "B.weight", "B.bias"))
            for i, energy in enumerate((wanted, wanted - ours, wanted - x @ a.T @ b.T - bias)):
                sums[width][i] += energy.square().sum().item()
            assert len(down) == len(a) == min(4, *weight.shape)
    for width, (wanted, missed_by_kohya, missed_by_peft) in sums.items():
        assert lora.kept[width]["kohya"] == pytest.approx(1 - missed_by_kohya / wanted, abs=1e-4)
        assert lora.kept[width]["peft"] == pytest.approx(1 - missed_by_peft / wanted, abs=1e-4)
        assert 0 < lora.fitted[width] < 0.5 and lora.kept[width]["peft"] > lora.kept[width]["kohya"]
    assert len(kohya) == 3 * len(lora.factors) and len(peft) == 3 * len(lora.factors)


def test_the_nearest_linear_map_is_found():
    """Contexts on which a ReLU is linear: the fit is exact there."""
    hypernetwork = style(activation="relu")
    for pair in hypernetwork.pairs.values():
        for module in pair.values():
            module.linear[0].bias.fill_(50.0)
    contexts = normal_contexts(hypernetwork, 500)
    lora = to_lora(tiny_unet(), hypernetwork, 64, contexts)
    assert max(lora.fitted.values()) < 1e-9 and min(kept["peft"] for kept in lora.kept.values()) > 1 - 1e-9


def test_contexts_are_what_the_modules_get():
    pipe, hypernetwork, seen = pipeline(), style(), {}
    for width, pair in hypernetwork.pairs.items():
        keep = seen.setdefault(int(width), [])
        pair["k"].register_forward_pre_hook(lambda module, args, keep=keep: keep.append(args[0].flatten(0, -2).clone()))
    contexts = gather_contexts(pipe, hypernetwork, ["a red star", "a cat"], num_inference_steps=2, **SIZE)
    for width, rows in contexts.items():
        known = {row.numpy().tobytes() for row in torch.cat(seen[width])}
        assert all(row.numpy().tobytes() in known for row in rows) and len(rows) > width
    assert {type(p).__name__ for p in pipe.unet.attn_processors.values()} == {"AttnProcessor2_0"}


def test_lora_of_some_widths(tmp_path):
    pipe, hypernetwork = pipeline(), Hypernetwork((12, 32), weight_init="kaiming_normal").eval()
    contexts = gather_contexts(pipe, hypernetwork, ["a cat"], num_inference_steps=2, **SIZE)
    lora = to_lora(pipe.unet, hypernetwork, 32, contexts)
    assert contexts.keys() == lora.kept.keys() == {12, 32} and min(kept["peft"] for kept in lora.kept.values()) > 0.999
    hypernetwork.pairs["12"]["k"].linear[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="has weights that are not numbers"):
        to_lora(pipe.unet, hypernetwork, 32, contexts)
