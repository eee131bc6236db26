"""The module against the WebUI's documented formula, recomputed from the state dict alone."""

import itertools

import pytest
import torch

from hypernet import Hypernetwork
from hypernet.modeling.hypernetwork import ACTIVATIONS, WEIGHT_INITS, check_structure

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
FORMULAS = {  # of each activation with its default arguments, as torch's documentation gives it
    "linear": lambda x: x,
    "celu": lambda x: x.clamp(min=0) + (x.exp() - 1).clamp(max=0),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "hardshrink": lambda x: torch.where(x.abs() > 0.5, x, 0.0),
    "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x: x.clamp(-1, 1),
    "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "logsigmoid": lambda x: -torch.log(1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(torch.log(1 + x.exp())),
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "rrelu": lambda x: torch.where(x >= 0, x, x * (1 / 8 + 1 / 3) / 2),
    "selu": lambda x: SELU_SCALE * torch.where(x > 0, x, SELU_ALPHA * (x.exp() - 1)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "softplus": lambda x: torch.log(1 + x.exp()),
    "softshrink": lambda x: x.sign() * (x.abs() - 0.5).clamp(min=0),
    "softsign": lambda x: x / (1 + x.abs()),
    "swish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "tanh": torch.tanh,
    "tanhshrink": lambda x: x - torch.tanh(x),
}
NOT_OF_ONE_NUMBER = {"prelu", "softmax", "softmin", "logsoftmax"}  # with a weight of its own, or over a dimension


def plain_mlp(state_dict, x, structure, activation, layer_norm, activate_output, dropout):
    """In documented order: Linear, activation, LayerNorm; the names count the dropouts, which do nothing here."""
    position = 0
    for i in range(1, len(structure)):
        x = x @ state_dict[f"linear.{position}.weight"].T + state_dict[f"linear.{position}.bias"]
        position += 1
        if activation != "linear" and (i < len(structure) - 1 or activate_output):
            x = FORMULAS[activation](x)
            position += 1
        if layer_norm:
            centred = x - x.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            x = x * state_dict[f"linear.{position}.weight"] + state_dict[f"linear.{position}.bias"]
            position += 1
        if dropout is not None and dropout[i] > 0:
            position += 1
    assert position > max(int(name.split(".")[1]) for name in state_dict)
    return x


@pytest.mark.parametrize("structure", [(1, 2, 1), (1, 2, 2, 1), (1, 1.5, 1.5, 1), (1, 4, 1)])
@pytest.mark.parametrize("activation", FORMULAS)
def test_forward_is_the_documented_formula(structure, activation):
    x = torch.randn(2, 5, 10, dtype=torch.float64)  # so that nothing but a wrong formula makes a difference
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


def test_every_activation_of_torch_runs():
    assert ACTIVATIONS.keys() == FORMULAS.keys() | NOT_OF_ONE_NUMBER
    for activation in ACTIVATIONS:
        context_k, context_v = Hypernetwork(widths=(6,), activation=activation)(torch.randn(2, 3, 6))
        assert context_k.shape == context_v.shape == (2, 3, 6)


def test_sizes_of_sd1():
    hypernetwork = Hypernetwork()
    assert sum(p.numel() for p in hypernetwork.parameters()) == 21_939_840
    assert Hypernetwork(widths=(10,), layer_structure=(1, 0.55, 1)).pairs["10"]["k"].linear[0].out_features == 5


@pytest.mark.parametrize("init", WEIGHT_INITS)
def test_initial_weights(init):
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
def test_zero_starts_as_the_identity(norm):
    x = torch.randn(2, 5, 10)
    for structure, activation in itertools.product([(1, 1), (1, 2, 1), (1, 0.5, 3, 1)], ACTIVATIONS):
        hypernetwork = Hypernetwork((10,), structure, activation, "zero", layer_norm=norm)
        assert all(torch.equal(result, x) for result in hypernetwork(x))
    with pytest.raises(ValueError, match="no identity"):
        Hypernetwork((10,), activation="sigmoid", weight_init="zero", activate_output=True)


def test_layer_norm_starts():
    assert (Hypernetwork((10,), layer_norm=True).pairs["10"]["k"].linear[1].weight == 1).all()
    webui = Hypernetwork((200,), layer_norm=True, layer_norm_init="normal").pairs["200"]["k"].linear[1].weight
    assert webui.abs().max() < 0.06


def test_other_widths_and_separate_values():
    hypernetwork, x = Hypernetwork(widths=(10,)), torch.randn(2, 5, 11)
    assert all(result is x for result in hypernetwork(x))
    k, v = torch.randn(2, 5, 10), torch.randn(2, 5, 10)
    assert torch.equal(hypernetwork(k, 1.0, v)[0], hypernetwork(k)[0])
    assert torch.equal(hypernetwork(k, 1.0, v)[1], hypernetwork(v)[1])


def test_saved_and_opened_again(tmp_path):
    hypernetwork = Hypernetwork((10, 12), (1, 1.5, 1), "mish", dropout_structure=(0, 0.1, 0), name="x", step=7)
    hypernetwork.save_pretrained(tmp_path)
    opened = Hypernetwork.from_pretrained(tmp_path)
    for key, value in hypernetwork.config.items():
        if key[0] == "_":
            continue
        assert opened.config[key] == (list(value) if isinstance(value, tuple) else value)
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), hypernetwork.state_dict().values()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"layer_structure": (2, 1)}, "start and end with 1"),
        ({"layer_structure": (1,)}, "start and end with 1"),
        ({"layer_structure": (1, 0, 1)}, "start and end with 1"),
        ({"activation": "rellu"}, "choose one of .*leakyrelu.*"),
        ({"weight_init": "nomal"}, "choose one of .*normal.*"),
        ({"layer_norm_init": "zeros"}, "choose one of normal, ones"),
        ({"dropout_structure": (0, 0.3)}, "needs 3 probabilities .* as in 0,0.3,0"),
        ({"dropout_structure": (0, 1, 0)}, "needs 3 probabilities"),
        ({"dropout_structure": (0.1, 0.3, 0)}, "needs 3 probabilities"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises(ValueError, match=message):
        check_structure(**options)
