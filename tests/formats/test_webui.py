"""The WebUI's file: what it may contain, what it must contain, what is refused."""

import itertools
import os
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F

import hypernet
from hypernet import Hypernetwork, NotAHypernetwork, load_webui, save_webui
from hypernet.modeling.structure import ACTIVATIONS, WEIGHT_INITS
from tests.helpers.references import FORMULAS, extension_output, plain_mlp
from tests.helpers.webui_files import ALLOWED_GLOBALS, globals_of, save_old_webui, save_residual

STRUCTURES = [(1, 2, 1), (1, 2, 2, 1), (1, 1.5, 1.5, 1), (1, 4, 1)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_round_trip_is_bit_exact_and_computes_the_documented_formula(tmp_path, monkeypatch, activation, structure):
    """With each activation, structure, LayerNorm, dropout and output; the initializations take turns with these."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds of files
    path, x = tmp_path / "style.pt", torch.randn(2, 3, 10)
    turn = list(ACTIVATIONS).index(activation) + STRUCTURES.index(structure)
    for number, (norm, dropped, output) in enumerate(itertools.product([False, True], repeat=3)):
        init = WEIGHT_INITS[(turn + number) % len(WEIGHT_INITS)]
        dropout = (0, *[0.3] * (len(structure) - 2), 0) if dropped else None
        try:
            hypernetwork = Hypernetwork((10,), structure, activation, init, norm, "ones", output, dropout, step=9)
        except ValueError as error:
            assert str(error).startswith("weight_init zero") and init == "zero" and output
            continue
        save_webui(hypernetwork, path)
        loaded, expected = hypernet.load(path), hypernetwork.state_dict()
        assert list(loaded.state_dict()) == list(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        for key, value in hypernetwork.config.items():
            value = {"name": "style", "weight_init": "normal" if init == "zero" else init}.get(key, value)
            value = list(value) if isinstance(value, tuple) else value
            assert key[0] == "_" or (loaded.config[key] or None) == (value or None), key
        if activation in FORMULAS:
            results, precise = loaded(x), loaded.double()(x.double())
            for i, part in enumerate(("k", "v")):
                weights = {name: tensor.double() for name, tensor in loaded.pairs["10"][part].state_dict().items()}
                expected = x + plain_mlp(weights, x.double(), structure, activation, norm, output, dropout)
                assert (precise[i] - expected).abs().max() < 1e-9
                # in float32, a LayerNorm of nearly equal numbers (such as sigmoids of small ones) magnifies rounding
                assert norm or (results[i] - expected).abs().max() < 1e-6 * (1 + expected.abs().max())
    assert globals_of(path) <= ALLOWED_GLOBALS


def test_file_has_the_webuis_fields_and_layer_names(tmp_path):
    torch.manual_seed(0)
    save_webui(Hypernetwork(widths=(320, 768), activation="swish", step=500), tmp_path / "my style.pt")
    assert (tmp_path / "my style.pt").read_bytes()[:2] != b"PK"  # not the zip serialization
    data = torch.load(tmp_path / "my style.pt", weights_only=True)
    fields = {key: value for key, value in data.items() if isinstance(key, str)}
    assert fields == {
        "step": 500,
        "name": "my style",
        "layer_structure": [1, 2, 1],
        "activation_func": "swish",
        "is_layer_norm": False,
        "weight_initialization": "Normal",
        "sd_checkpoint": None,
        "sd_checkpoint_name": None,
        "activate_output": False,
        "use_dropout": False,
        "dropout_structure": None,
        "last_layer_dropout": False,
        "optional_info": None,
    }
    names = ["linear.0.weight", "linear.0.bias", "linear.2.weight", "linear.2.bias"]
    assert [list(module) for module in data[768]] == [names, names]
    assert not torch.equal(data[768][0]["linear.0.weight"], data[768][1]["linear.0.weight"])


@pytest.mark.parametrize("structure, size", [((1, 2, 1), 83.7), ((1, 2, 2, 1), 167.4)])
def test_file_sizes_for_sd1(tmp_path, structure, size):
    hypernetwork = Hypernetwork(layer_structure=structure, weight_init="zero")
    for dtype, part in ((None, 1), (torch.float16, 2)):
        save_webui(hypernetwork, tmp_path / "a.pt", dtype)
        assert (tmp_path / "a.pt").stat().st_size / 2**20 == pytest.approx(size / part, abs=0.06)


def test_loads_files_of_october_2022(tmp_path):
    modules = save_old_webui(tmp_path / "old.pt", width=10, name="another")
    loaded, x = load_webui(tmp_path / "old.pt"), torch.randn(2, 3, 10)
    assert loaded.config.activate_output and loaded.config.name == "old" and loaded.config.activation == "linear"
    assert torch.equal(loaded(x)[1], x + modules["v"](x))


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, [0, 0.3, 0, 0]),
        ({"last_layer_dropout": True}, [0, 0.3, 0.3, 0]),
        ({"dropout_structure": [0, 0.1, 0.2, 0]}, [0, 0.1, 0.2, 0]),
    ],
)
def test_reads_dropout_from_flags(tmp_path, flags, expected):
    modules = Hypernetwork((10,), (1, 2, 2, 1), dropout_structure=expected).pairs["10"]
    data = {10: (modules["k"].state_dict(), modules["v"].state_dict()), "layer_structure": [1, 2, 2, 1]}
    torch.save({**data, "use_dropout": True, **flags}, tmp_path / "a.pt")
    assert load_webui(tmp_path / "a.pt").config.dropout_structure == expected


@pytest.mark.parametrize("dropout", [(0, 0.05, 0.15), (0.2, 0, 0.5), (0.2, 0, 0)])
@pytest.mark.parametrize("activation", ["linear", "relu"])
def test_dropout_may_be_in_the_first_and_last_entry(tmp_path, dropout, activation):
    """The WebUI's Create dialog recommends 0, 0.05, 0.15. The first entry has no layer; in evaluation none drops."""
    hypernetwork = Hypernetwork((10,), activation=activation, weight_init="xavier_normal", dropout_structure=dropout)
    save_webui(hypernetwork, tmp_path / "a.pt")
    data = torch.load(tmp_path / "a.pt", weights_only=True)
    assert data["dropout_structure"] == list(dropout) and data["use_dropout"] is True
    assert data["last_layer_dropout"] is (dropout[1] > 0)
    data["dropout_structure"].append(0.3)  # the WebUI does not look at more
    torch.save(data, tmp_path / "longer.pt")
    x = torch.randn(2, 3, 10)
    for name in ("a.pt", "longer.pt"):
        loaded = load_webui(tmp_path / name)
        assert loaded.config.dropout_structure == list(dropout)
        weights = loaded.pairs["10"]["k"].state_dict()
        assert weights.keys() == data[10][0].keys()
        expected = x + plain_mlp(weights, x, (1, 2, 1), activation, False, False, dropout)
        torch.testing.assert_close(loaded(x)[0], expected)


@pytest.mark.parametrize(
    "given, expected", [({}, True), ({"activate_output": None}, False), ({"activate_output": 0}, False)]
)
def test_a_missing_activate_output_is_true_and_none_is_false(tmp_path, given, expected):
    modules = Hypernetwork((10,), activation="relu", activate_output=expected).pairs["10"]
    torch.save(
        {10: tuple(modules[p].state_dict() for p in "kv"), "activation_func": "relu", **given}, tmp_path / "a.pt"
    )
    assert load_webui(tmp_path / "a.pt").config.activate_output is expected


FUNCTIONS = {None: lambda x: x, "relu": torch.relu, "swish": F.hardswish, "softsign": F.softsign}


@pytest.mark.parametrize("upsample", [None, False, "Linear"])
@pytest.mark.parametrize("structure", [(1, 1), (1, 2, 1), (1, 0.3, 1), (1, 1.5, 2, 1)])
def test_residual_files_of_the_extension_compute_what_it_computes(tmp_path, monkeypatch, upsample, structure):
    """Exactly, with LayerNorm and dropout too, and after a way through every format."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # hundreds of files
    x = torch.randn(2, 3, 12)
    for (activation, function), norm in itertools.product(FUNCTIONS.items(), [False, True]):
        drop = [0.2, *[0.3] * (len(structure) - 1)] if norm else [0] * len(structure)
        fields = {"activation_func": activation, "dropout_structure": drop, "use_dropout": norm}
        data = save_residual(tmp_path / "a.pt", (12,), structure, upsample, norm, **fields)
        loaded = hypernet.load(tmp_path / "a.pt")
        for strength in (1.0, 0.3, -0.5, 0.0):
            for part, result in enumerate(loaded(x, strength)):
                assert torch.equal(result, extension_output(data[12][part], x, strength, function, norm))
        assert list(loaded.config.dropout_structure) == drop and loaded.config.step == 1000
        for source, target in itertools.pairwise(("a.pt", "b.safetensors", "folder", "a.pt")):
            hypernet.save(hypernet.load(tmp_path / source), tmp_path / target)
        back = torch.load(tmp_path / "a.pt", weights_only=True)
        same = {"upsample_linear": upsample or None, "activation_func": activation or "linear"}
        same |= {"last_layer_dropout": norm and len(structure) > 2}
        for key, value in data.items():
            if key == 12:
                for before, after in zip(value, back[12]):
                    assert list(before) == list(after)
                    assert all(torch.equal(before[name], after[name]) for name in before)
            else:
                assert back[key] == same.get(key, value), key
        assert globals_of(tmp_path / "a.pt") <= ALLOWED_GLOBALS


@pytest.mark.parametrize("upsample", [None, "Linear"])
def test_the_weights_show_a_residual_file_without_its_field(tmp_path, upsample):
    data = save_residual(tmp_path / "a.pt", upsample=upsample)
    del data["skip_connection"], data["upsample_linear"]
    torch.save(data, tmp_path / "b.pt")
    x = torch.randn(2, 3, 12)
    assert torch.equal(hypernet.load(tmp_path / "b.pt")(x)[1], extension_output(data[12][1], x))
    with pytest.raises(NotAHypernetwork, match="b.pt: "):  # a plain structure cannot have these fields
        save_webui(Hypernetwork((12,)), tmp_path / "b.pt")
        plain = torch.load(tmp_path / "b.pt", weights_only=True)
        torch.save({**plain, "skip_connection": True}, tmp_path / "b.pt")
        hypernet.load(tmp_path / "b.pt")


@pytest.mark.parametrize("upsample", [None, "Linear", False])
def test_reads_plain_files_of_the_extension(tmp_path, upsample):
    save_webui(Hypernetwork((10,), activation="relu"), tmp_path / "a.pt")
    data = torch.load(tmp_path / "a.pt", weights_only=True)
    torch.save({**data, "skip_connection": False, "upsample_linear": upsample}, tmp_path / "b.pt")
    loaded, x = load_webui(tmp_path / "b.pt"), torch.randn(2, 10)
    assert torch.equal(loaded(x)[1], load_webui(tmp_path / "a.pt")(x)[1])


def pair(width=10):
    modules = Hypernetwork((width,)).pairs[str(width)]
    return modules["k"].state_dict(), modules["v"].state_dict()


@pytest.mark.parametrize(
    "data, named",
    [
        ([1, 2], ""),
        ({"x": torch.ones(2)}, ""),
        ({10: pair(), "activation_func": "gaussian"}, "gaussian"),
        ({11: pair()}, ""),
        ({10: pair()[:1]}, "width 10"),
        ({10: 5}, "width 10"),
        ({10: (OrderedDict(), OrderedDict())}, ""),
        ({10: pair(), "layer_structure": [1, 3, 1]}, r"linear.0.weight .*\[20, 10\].*\[30, 10\]"),
        ({10: pair(), "layer_structure": [2, 1]}, "layer_structure"),
    ],
    ids=[
        "list",
        "no width",
        "activation",
        "other width",
        "half a pair",
        "number",
        "empty",
        "other layers",
        "bad layers",
    ],
)
def test_refuses_what_does_not_fit(tmp_path, data, named):
    torch.save(data, tmp_path / "bad.pt")
    with pytest.raises(NotAHypernetwork, match=f"bad.pt: .*{named}") as error:
        hypernet.load(tmp_path / "bad.pt")
    assert "\n" not in str(error.value)


def test_keeps_float16_and_the_notes(tmp_path):
    hypernetwork = Hypernetwork((10,), optional_info="a note", base_model_name="sd", base_model_hash="0123456789")
    save_webui(hypernetwork, tmp_path / "a.pt", torch.float16)
    loaded = hypernet.load(tmp_path / "a.pt")
    assert loaded.stored_dtype is torch.float16 and loaded.dtype is torch.float32
    for ours, theirs in zip(loaded.state_dict().values(), hypernetwork.state_dict().values()):
        assert torch.equal(ours, theirs.half().float())
    assert loaded.config.optional_info == "a note" and loaded.config.base_model_hash == "0123456789"


def test_loading_uses_no_random_numbers(tmp_path):
    save_webui(Hypernetwork((10,)), tmp_path / "a.pt")
    before = torch.get_rng_state()
    hypernet.load(tmp_path / "a.pt")
    assert torch.equal(torch.get_rng_state(), before)
