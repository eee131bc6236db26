"""The hypernetwork against the WebUI's documented formula, recomputed from the state dict alone."""

import itertools

import pytest
import torch

from hypernet import Hypernetwork
from hypernet.modeling.structure import ACTIVATIONS, WEIGHT_INITS
from tests.helpers.references import FORMULAS, plain_mlp


@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 2, 2, 1), (1, 1.5, 1.5, 1), (1, 4, 1)])
@pytest.mark.parametrize("activation", FORMULAS)
def test_forward_matches_the_documented_formula(structure, activation):
    x = torch.randn(2, 5, 10, dtype=torch.float64)  # in float64 only a wrong formula makes a difference
    dropouts = [None, (0, *[0.3] * (len(structure) - 2), 0)]
    for norm, output, dropout, init in itertools.product([0, 1], [0, 1], dropouts, ["normal", "kaiming_uniform"]):
        options = (structure, activation, bool(norm), bool(output), dropout)
        hypernetwork = Hypernetwork(
            widths=(10,),
            layer_structure=structure,
            activation=activation,
            weight_init=init,
            layer_norm=bool(norm),
            activate_output=bool(output),
            dropout_structure=dropout,
        )
        hypernetwork = hypernetwork.eval().double()
        for part, result in zip(("k", "v"), hypernetwork(x, 0.7)):
            expected = x + 0.7 * plain_mlp(hypernetwork.pairs["10"][part].state_dict(), x, *options)
            assert (result - expected).abs().max() < 1e-12


@pytest.mark.parametrize("dropout", [(0, 0.05, 0.15), (0.3, 0.5, 0.9), (0.9, 0, 0.5), (0.5, 0, 0)])
@pytest.mark.parametrize("output", [False, True])
def test_dropout_follows_each_layer_with_a_probability_and_the_first_entry_is_unused(dropout, output):
    """In training, with the same random numbers, as by hand: Linear, activation, LayerNorm, dropout."""
    hypernetwork = Hypernetwork(
        (10,), activation="relu", layer_norm=True, activate_output=output, dropout_structure=dropout
    )
    weights, x = hypernetwork.pairs["10"]["k"].state_dict(), torch.randn(2, 5, 10)
    torch.manual_seed(3)
    found = hypernetwork.train()(x)[0]
    torch.manual_seed(3)
    layers = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    added = x
    for i, (linear, norm) in enumerate(zip(layers[::2], layers[1::2])):
        added = added @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"]
        added = added.relu() if i == 0 or output else added
        added = torch.nn.functional.layer_norm(
            added, added.shape[-1:], weights[f"{norm}.weight"], weights[f"{norm}.bias"]
        )
        if dropout[i + 1]:
            added = torch.nn.functional.dropout(added, dropout[i + 1])
    torch.testing.assert_close(found, x + added)


def test_every_activation_runs():
    assert ACTIVATIONS.keys() == FORMULAS.keys() | {
        "prelu",
        "softmax",
        "softmin",
        "logsoftmax",
    }  # a weight or a dimension
    for activation in ACTIVATIONS:
        context_k, context_v = Hypernetwork(widths=(6,), activation=activation)(torch.randn(2, 3, 6))
        assert context_k.shape == context_v.shape == (2, 3, 6)


def test_layer_sizes():
    hypernetwork = Hypernetwork()
    assert sum(p.numel() for p in hypernetwork.parameters()) == 21_939_840
    assert Hypernetwork(widths=(10,), layer_structure=(1, 0.55, 1)).pairs["10"]["k"].linear[0].out_features == 5


@pytest.mark.parametrize("init", WEIGHT_INITS)
def test_initial_weights_have_the_right_spread(init):
    torch.manual_seed(0)
    layer = Hypernetwork(widths=(400,), weight_init=init).pairs["400"]["k"].linear
    std = {"xavier": (2 / 1200) ** 0.5, "kaiming": (2 / 400) ** 0.5, "zero": (2 / 400) ** 0.5, "normal": 0.01}
    assert layer[0].weight.std().item() == pytest.approx(std[init.split("_")[0]], rel=0.02)
    bound = layer[0].weight.abs().max() / layer[0].weight.std()
    assert bound < 1.8 if init.endswith("uniform") else bound > 3
    assert not layer[0].bias.any() and not layer[1].bias.any()
    assert layer[1].weight.any() == (init != "zero")


def test_kaiming_gain_of_leakyrelu():
    torch.manual_seed(0)
    leaky = Hypernetwork(widths=(400,), activation="leakyrelu", weight_init="kaiming_normal")
    # gain of leaky_relu with kaiming's default slope a = 0 is that of relu
    assert leaky.pairs["400"]["v"].linear[0].weight.std().item() == pytest.approx((2 / 400) ** 0.5, rel=0.02)


@pytest.mark.parametrize("norm", [False, True])
def test_zero_init_is_the_identity(norm):
    x = torch.randn(2, 5, 10)
    for structure, activation in itertools.product([(1, 1), (1, 2, 1), (1, 0.5, 3, 1)], ACTIVATIONS):
        hypernetwork = Hypernetwork((10,), structure, activation, "zero", layer_norm=norm)
        assert all(torch.equal(result, x) for result in hypernetwork(x))
    with pytest.raises(ValueError, match="weight_init zero"):
        Hypernetwork((10,), activation="sigmoid", weight_init="zero", activate_output=True)


def test_layer_norm_init():
    assert (Hypernetwork((10,), layer_norm=True).pairs["10"]["k"].linear[1].weight == 1).all()
    webui = Hypernetwork((200,), layer_norm=True, layer_norm_init="normal").pairs["200"]["k"].linear[1].weight
    assert webui.abs().max() < 0.06


def test_other_widths_pass_through_and_values_may_have_their_own_context():
    hypernetwork, x = Hypernetwork(widths=(10,)), torch.randn(2, 5, 11)
    assert all(result is x for result in hypernetwork(x))
    k, v = torch.randn(2, 5, 10), torch.randn(2, 5, 10)
    assert torch.equal(hypernetwork(k, 1.0, v)[0], hypernetwork(k)[0])
    assert torch.equal(hypernetwork(k, 1.0, v)[1], hypernetwork(v)[1])


def test_save_pretrained_round_trip(tmp_path):
    hypernetwork = Hypernetwork((10, 12), (1, 1.5, 1), "mish", dropout_structure=(0, 0.1, 0), name="x", step=7)
    hypernetwork.save_pretrained(tmp_path)
    loaded = Hypernetwork.from_pretrained(tmp_path)
    for key, value in hypernetwork.config.items():
        if key[0] == "_":
            continue
        assert loaded.config[key] == (list(value) if isinstance(value, tuple) else value)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), hypernetwork.state_dict().values()))
