"""The WebUI's file: what it may contain, what it must contain, what is refused."""

import hashlib
import itertools
import json
import os
import pickletools
import random
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file, save_file

import hypernet
from hypernet import Hypernetwork, NotAHypernetwork, load_webui, save_webui
from hypernet.formats.load_save import _digest
from hypernet.formats.webui_optimizer import load_optim, save_optim
from hypernet.modeling.hypernetwork import ACTIVATIONS, WEIGHT_INITS
from tests.modeling.test_hypernetwork import FORMULAS, plain_mlp

ALLOWED = {  # what the WebUI's restricted unpickler lets through, and occurs in such a file
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch FloatStorage",
    "torch HalfStorage",
    "torch BFloat16Storage",
}
STRUCTURES = [(1, 2, 1), (1, 2, 2, 1), (1, 1.5, 1.5, 1), (1, 4, 1)]


def globals_of(path):
    """Every class or function that the file's pickles name. A legacy file is five pickles, then the tensors' bytes."""
    names = set()
    with open(path, "rb") as file:
        for _ in range(5):
            for opcode, argument, _ in pickletools.genops(file):
                if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST"):
                    names.add(argument)
    return names


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_hypernetwork_comes_back_bit_for_bit(tmp_path, monkeypatch, activation, structure):
    """And computes the documented formula: each activation, structure, LayerNorm, dropout, output and initialisation."""
    monkeypatch.setattr(os, "fsync", lambda file: None)  # thousands of files
    path, x = tmp_path / "style.pt", torch.randn(2, 3, 10)
    for norm, dropped, output, init in itertools.product([False, True], [False, True], [False, True], WEIGHT_INITS):
        dropout = (0, *[0.3] * (len(structure) - 2), 0) if dropped else None
        try:
            hypernetwork = Hypernetwork((10,), structure, activation, init, norm, "ones", output, dropout, step=9)
        except ValueError as error:
            assert "so with activate_output it is no identity" in str(error) and init == "zero" and output
            continue
        save_webui(hypernetwork, path)
        opened, expected = hypernet.load(path), hypernetwork.state_dict()
        assert list(opened.state_dict()) == list(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
        for key, value in hypernetwork.config.items():
            value = {"name": "style", "weight_init": "normal" if init == "zero" else init}.get(key, value)
            value = list(value) if isinstance(value, tuple) else value
            assert key[0] == "_" or (opened.config[key] or None) == (value or None), key
        if activation in FORMULAS:
            results, precise = opened(x), opened.double()(x.double())
            for i, part in enumerate(("k", "v")):
                weights = {name: tensor.double() for name, tensor in opened.pairs["10"][part].state_dict().items()}
                expected = x + plain_mlp(weights, x.double(), structure, activation, norm, output, dropout)
                assert (precise[i] - expected).abs().max() < 1e-9
                # in float32 a LayerNorm of all but equal numbers (sigmoids of small ones, say) enlarges any rounding
                assert norm or (results[i] - expected).abs().max() < 1e-6 * (1 + expected.abs().max())
    assert globals_of(path) <= ALLOWED


def test_the_file_as_the_webui_reads_it(tmp_path):
    torch.manual_seed(0)
    save_webui(Hypernetwork(widths=(320, 768), activation="swish", step=500), tmp_path / "my style.pt")
    assert (tmp_path / "my style.pt").read_bytes()[:2] != b"PK"  # not the zip serialisation
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
    assert [list(data[768][i]) for i in (0, 1)] == [
        ["linear.0.weight", "linear.0.bias", "linear.2.weight", "linear.2.bias"]
    ] * 2
    assert not torch.equal(data[768][0]["linear.0.weight"], data[768][1]["linear.0.weight"])


@pytest.mark.parametrize("structure, size", [((1, 2, 1), 83.7), ((1, 2, 2, 1), 167.4)])
def test_sizes_of_sd1_files(tmp_path, structure, size):
    hypernetwork = Hypernetwork(layer_structure=structure, weight_init="zero")
    for dtype, part in ((None, 1), (torch.float16, 2)):
        save_webui(hypernetwork, tmp_path / "a.pt", dtype)
        assert (tmp_path / "a.pt").stat().st_size / 2**20 == pytest.approx(size / part, abs=0.06)


def old_file(path, **fields):
    modules = Hypernetwork((10,), layer_structure=fields.get("layer_structure", (1, 2, 1))).pairs["10"]
    names = {"linear.0": "linear1", "linear.1": "linear2"}
    data = {10: tuple({names[n[:8]] + n[8:]: t for n, t in modules[p].state_dict().items()} for p in ("k", "v"))}
    torch.save({**data, **fields}, path)
    return modules


def test_files_of_the_first_weeks(tmp_path):
    modules = old_file(tmp_path / "old.pt", name="another")
    opened, x = load_webui(tmp_path / "old.pt"), torch.randn(2, 3, 10)
    assert opened.config.activate_output and opened.config.name == "old" and opened.config.activation == "linear"
    assert torch.equal(opened(x)[1], x + modules["v"](x))


@pytest.mark.parametrize(
    "flags, expected",
    [
        ({}, [0, 0.3, 0, 0]),
        ({"last_layer_dropout": True}, [0, 0.3, 0.3, 0]),
        ({"dropout_structure": [0, 0.1, 0.2, 0]}, [0, 0.1, 0.2, 0]),
    ],
)
def test_dropout_of_old_flags(tmp_path, flags, expected):
    modules = Hypernetwork((10,), (1, 2, 2, 1), dropout_structure=expected).pairs["10"]
    data = {10: (modules["k"].state_dict(), modules["v"].state_dict()), "layer_structure": [1, 2, 2, 1]}
    torch.save({**data, "use_dropout": True, **flags}, tmp_path / "a.pt")
    assert load_webui(tmp_path / "a.pt").config.dropout_structure == expected


def test_what_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "bad.pt"
    good = Hypernetwork((10,)).pairs["10"]
    pair = (good["k"].state_dict(), good["v"].state_dict())
    for data, message in [
        ([1, 2], "it is no hypernetwork"),
        ({"x": torch.ones(2)}, "it is no hypernetwork"),
        ({10: pair, "activation_func": "gaussian"}, "activation 'gaussian' is unknown"),
        ({11: pair}, "do not fit"),
        ({10: pair[:1]}, "width 10 has no pair"),
        ({10: 5}, "width 10 has no pair"),
        ({10: (OrderedDict(), OrderedDict())}, "do not fit"),
        ({10: pair, "layer_structure": [1, 3, 1]}, r"linear.0.weight has the shape \[20, 10\], .* says \[30, 10\]"),
        ({10: pair, "layer_structure": [2, 1]}, "start and end with 1"),
    ]:
        torch.save(data, path)
        with pytest.raises(NotAHypernetwork, match=message) as error:
            hypernet.load(path)
        assert "\n" not in str(error.value) and "bad.pt" in str(error.value)


def test_half_and_what_the_file_said(tmp_path):
    hypernetwork = Hypernetwork((10,), optional_info="a note", base_model_name="sd", base_model_hash="0123456789")
    save_webui(hypernetwork, tmp_path / "a.pt", torch.float16)
    opened = hypernet.load(tmp_path / "a.pt")
    assert opened.stored_dtype is torch.float16 and opened.dtype is torch.float32
    for ours, theirs in zip(opened.state_dict().values(), hypernetwork.state_dict().values()):
        assert torch.equal(ours, theirs.half().float())
    assert opened.config.optional_info == "a note" and opened.config.base_model_hash == "0123456789"


def test_loading_draws_no_random_number(tmp_path):
    save_webui(Hypernetwork((10,)), tmp_path / "a.pt")
    before = torch.get_rng_state()
    hypernet.load(tmp_path / "a.pt")
    assert torch.equal(torch.get_rng_state(), before)


def adamw(hypernetwork, steps=2):
    """An optimizer of the hypernetwork after some steps on random contexts."""
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-2)
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        contexts = [torch.randn(2, 3, int(width), generator=generator) for width in hypernetwork.pairs]
        sum(part.square().mean() for x in contexts for part in hypernetwork(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_the_optimizer_as_the_webui_reads_it(tmp_path):
    """The WebUI: parameters of each width in the file's order, K before V; the hash of the .pt, its first ten digits."""
    hypernetwork, path = Hypernetwork((12, 10), activation="relu"), tmp_path / "style.pt"
    optimizer = adamw(hypernetwork)
    save_webui(hypernetwork, path)
    save_optim(optimizer.state_dict(), path)
    assert globals_of(tmp_path / "style.pt.optim") <= ALLOWED
    saved = torch.load(tmp_path / "style.pt.optim", weights_only=True)
    assert saved["optimizer_name"] == "AdamW"
    assert saved["hash"] == hashlib.sha256(path.read_bytes()).hexdigest()[:10]
    file = torch.load(path, weights_only=True)
    theirs = [t for key in file if isinstance(key, int) for module in file[key] for t in module.values()]
    state = saved["optimizer_state_dict"]
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in theirs]
    resumed = torch.optim.AdamW(parameters, lr=1e-2)
    resumed.load_state_dict(state)
    gradients = [torch.randn(tensor.shape) for tensor in theirs]
    for ours, other, gradient in zip(hypernetwork.parameters(), parameters, gradients):
        ours.grad, other.grad = gradient.clone(), gradient.clone()
    optimizer.step()
    resumed.step()
    assert all(torch.equal(ours, other) for ours, other in zip(hypernetwork.parameters(), parameters))


def test_an_optimizer_that_comes_back_or_not(tmp_path):
    hypernetwork, path = Hypernetwork((12, 10)), tmp_path / "style.pt"
    save_webui(hypernetwork, path)
    assert load_optim(path, hypernetwork) == (None, "there is no style.pt.optim beside it: the optimizer starts anew")
    save_optim(adamw(hypernetwork).state_dict(), path)
    state, line = load_optim(path, hypernetwork)
    assert line == "the optimizer goes on from style.pt.optim"
    hypernetwork.register_to_config(step=3)  # the optimizer has made 2
    save_webui(hypernetwork, path)
    assert "although its hash is another file's" in load_optim(path, hypernetwork)[1]
    hypernetwork.register_to_config(step=0)
    save_webui(hypernetwork, path)
    assert load_optim(path, hypernetwork)[1] == (
        "style.pt.optim belongs to another file, of step 2: the optimizer starts anew"
    )
    with pytest.raises(NotAHypernetwork, match="style.pt.optim: it is no AdamW state of this hypernetwork"):
        load_optim(path, Hypernetwork((12, 10), (1, 3, 1)))
    for change in (
        {"step": None},
        {"step": torch.ones(2)},
        {"step": float("nan")},
        {"step": torch.tensor(torch.inf)},
        {"exp_avg": torch.ones(12, 12).long()},
        {"exp_avg": 5},
    ):
        broken = adamw(hypernetwork).state_dict()
        broken["state"][0] = {**broken["state"][0], **change}
        torch.save({"optimizer_name": "AdamW", "optimizer_state_dict": broken}, f"{path}.optim")
        with pytest.raises(NotAHypernetwork, match="style.pt.optim: it is no AdamW state of this hypernetwork"):
            load_optim(path, hypernetwork)
    save_optim(adamw(hypernetwork).state_dict(), path)
    damaged = (tmp_path / "style.pt.optim").read_bytes()[:-200]
    (tmp_path / "style.pt.optim").write_bytes(damaged)
    with pytest.raises(NotAHypernetwork, match="style.pt.optim: it is no optimizer's state, or a damaged one"):
        load_optim(path, hypernetwork)
    torch.save({"optimizer_name": "SGD", "optimizer_state_dict": {}}, f"{path}.optim")
    assert load_optim(path, hypernetwork) == (None, "style.pt.optim is not AdamW's: the optimizer starts anew")
    torch.save({"optimizer_name": "AdamW", "optimizer_state_dict": {"state": 1}}, f"{path}.optim")
    with pytest.raises(NotAHypernetwork, match="no AdamW state"):
        load_optim(path, hypernetwork)


def test_files_of_ours(tmp_path):
    hypernetwork = Hypernetwork((10,), name="x")
    hypernet.save(hypernetwork, tmp_path / "x")
    pretrained = Hypernetwork.from_pretrained(tmp_path / "x")
    assert pretrained.config.name == "x"
    for ours, theirs in zip(pretrained.state_dict().values(), hypernetwork.state_dict().values()):
        assert torch.equal(ours, theirs)
    for path in (tmp_path / "x", tmp_path / "x" / "diffusion_pytorch_model.safetensors"):
        opened = hypernet.load(path)
        assert not opened.training
        assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), hypernetwork.state_dict().values()))
    with pytest.raises(NotAHypernetwork, match="no such file"):
        hypernet.load(tmp_path / "y")
    Hypernetwork((10,)).save_pretrained(tmp_path / "x")  # diffusers' own, without the config in the weights' file
    assert hypernet.load(tmp_path / "x").config.name == "hypernetwork"
    (tmp_path / "x" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(NotAHypernetwork, match="a UNet2DConditionModel, not a Hypernetwork"):
        hypernet.load(tmp_path / "x")
    with pytest.raises(NotAHypernetwork, match="somebody/neon-1.5: no such folder here"):
        hypernet.load("somebody/neon-1.5")


def test_a_safetensors_that_stands_alone(tmp_path):
    hypernetwork, path = Hypernetwork((10,), activation="mish", step=5), tmp_path / "alone.safetensors"
    hypernet.save(hypernetwork, path)
    opened = hypernet.load(path)
    assert opened.config.name == "alone" and opened.config.activation == "mish" and opened.config.step == 5
    assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), hypernetwork.state_dict().values()))
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(NotAHypernetwork, match="its checksum is wrong"):
        hypernet.load(path)
    path.write_bytes(content.replace(b"mish", b"relu"))
    with pytest.raises(NotAHypernetwork, match="its checksum is wrong"):
        hypernet.load(path)


def test_a_folder_of_two_minds(tmp_path):
    """The weights' file has the config, too, and the step is its; a config.json of something else is no slip."""
    hypernet.save(Hypernetwork((10,), name="x", step=5), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "step": 4}))
    assert hypernet.load(tmp_path).config.step == 5
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation": "relu"}))
    with pytest.raises(NotAHypernetwork, match="config.json: its activation is not that of .*makes changed copies"):
        hypernet.load(tmp_path)
    (tmp_path / "config.json").unlink()
    assert hypernet.load(tmp_path).config.name == "x"


def test_a_folder_keeps_what_else_is_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    hypernet.save(Hypernetwork((10,), name="x"), tmp_path, torch.float16)
    opened = hypernet.load(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and opened.stored_dtype is torch.float16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "notes.txt",
    ]


@pytest.mark.parametrize("form", ["alone.safetensors", "folder"])
def test_mutated_configs_are_refused(tmp_path, form):
    """Whatever a config says in place of what it must, it is refused in one line; so is every flipped bit of the file."""
    path = tmp_path / form
    hypernet.save(Hypernetwork((10,), name="x"), path)
    file = path if path.is_file() else path / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    rng = random.Random(0)
    header = range(8, 8 + int.from_bytes(content[:8], "little"))
    for place in [*header, *(rng.randrange(len(content)) for _ in range(100))]:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        with pytest.raises(NotAHypernetwork) as error:
            hypernet.load(path)
        assert "\n" not in str(error.value)
    (tmp_path / "copy.safetensors").write_bytes(content)
    weights = load_file(tmp_path / "copy.safetensors")
    config = dict(Hypernetwork((10,), name="x").config)
    changes = [{"": 1}, {"unknown": 1}, {"activation": "gaussian"}, {"layer_structure": [1, 1e12, 1]}, {"widths": []}]
    changes += [{"widths": [10, 10]}, {"widths": [10.0]}, {"layer_structure": [1, float("nan"), 1]}, {"name": 5}]
    changes += [{"step": step} for step in ("abc", [1], None, -5, 1e400, True)]
    changes += [{"base_model_name": []}, {"optional_info": {}}, {"activate_output": "no"}, {"layer_norm": None}]
    texts = [json.dumps({**config, **change}) for change in changes] + ["[" * 200_000, "null", "5", "", '{"a": NaN']
    for text in texts:
        save_file(weights, tmp_path / "bad.safetensors", {"hypernetwork": text, "sha256": _digest(text, weights)})
        with pytest.raises(NotAHypernetwork) as error:
            hypernet.load(tmp_path / "bad.safetensors")
        assert "\n" not in str(error.value) and len(str(error.value)) < len(str(tmp_path)) + 400
