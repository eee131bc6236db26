"""The WebUI's file: what it may contain, what it must contain, what is refused."""

import itertools
import pickle
import pickletools
from collections import OrderedDict

import pytest
import torch

import hypernet
from hypernet import Hypernetwork, NotAHypernetwork, load_webui, save_webui

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


@pytest.mark.parametrize("activation", ["linear", "relu", "leakyrelu", "elu", "swish", "mish", "softsign", "prelu"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_round_trip_is_bit_identical(tmp_path, activation, structure):
    for norm, dropped, output in itertools.product([False, True], repeat=3):
        dropout = (0, *[0.3] * (len(structure) - 2), 0) if dropped else None
        init = "xavier_uniform" if norm else "kaiming_normal"
        hypernetwork = Hypernetwork((10, 12), structure, activation, init, norm, "ones", output, dropout, step=9)
        hypernetwork.register_to_config(base_model_name="sd", base_model_hash="0123456789")
        save_webui(hypernetwork, tmp_path / "style.pt")
        assert globals_of(tmp_path / "style.pt") <= ALLOWED
        opened = hypernet.load(tmp_path / "style.pt")
        expected = hypernetwork.state_dict()
        assert list(opened.state_dict()) == list(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in opened.state_dict().items())
        for key, value in hypernetwork.config.items():
            value = "style" if key == "name" else list(value) if isinstance(value, tuple) else value
            assert key[0] == "_" or (opened.config[key] or None) == (value or None), key


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


def test_sizes_of_sd1_files(tmp_path):
    save_webui(Hypernetwork(), tmp_path / "a.pt")
    assert round((tmp_path / "a.pt").stat().st_size / 2**20, 1) == 83.7


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


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code ran')",)


def test_nothing_else_is_read(tmp_path):
    path = tmp_path / "bad.pt"
    good = Hypernetwork((10,)).pairs["10"]
    pair = (good["k"].state_dict(), good["v"].state_dict())

    def refused(message):
        with pytest.raises(NotAHypernetwork, match=message) as error:
            hypernet.load(path)
        assert "\n" not in str(error.value) and "bad.pt" in str(error.value)

    refused("no such file")
    for content in (b"", b"hello", pickle.dumps(Malicious())):
        path.write_bytes(content)
        refused("it is no hypernetwork file, or a damaged one")
    torch.save({10: pair, "name": Malicious()}, path, _use_new_zipfile_serialization=False)
    refused("it is no hypernetwork file, or a damaged one")
    save_webui(Hypernetwork((10,)), path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("it is no hypernetwork file, or a damaged one")
    for data, message in [
        ([1, 2], "it is no hypernetwork"),
        ({"lora_up.weight": torch.ones(2)}, "it is no hypernetwork"),
        ({10: pair, "activation_func": "gaussian"}, "activation 'gaussian' is unknown"),
        ({11: pair}, "do not fit"),
        ({10: pair[:1]}, "do not fit"),
        ({10: 5}, "do not fit"),
        ({10: (OrderedDict(), OrderedDict())}, "do not fit"),
        ({10: pair, "layer_structure": [1, 3, 1]}, "do not fit"),
        ({10: pair, "layer_structure": [2, 1]}, "start and end with 1"),
    ]:
        torch.save(data, path)
        refused(message)


def test_files_of_ours(tmp_path):
    hypernetwork = Hypernetwork((10,), name="x")
    hypernetwork.save_pretrained(tmp_path / "x")
    for path in (tmp_path / "x", tmp_path / "x" / "diffusion_pytorch_model.safetensors"):
        opened = hypernet.load(path)
        assert not opened.training
        assert all(torch.equal(a, b) for a, b in zip(opened.state_dict().values(), hypernetwork.state_dict().values()))
    with pytest.raises(NotAHypernetwork, match="no such file"):
        hypernet.load(tmp_path / "y")
    (tmp_path / "x" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(NotAHypernetwork, match="a UNet2DConditionModel, not a Hypernetwork"):
        hypernet.load(tmp_path / "x")
    with pytest.raises(NotAHypernetwork, match="somebody/neon-1.5: no such folder here"):
        hypernet.load("somebody/neon-1.5")
