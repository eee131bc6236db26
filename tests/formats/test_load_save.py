"""Load every file format, save every file format, refuse everything else in one line."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

import hypernet
from hypernet import Hypernetwork, NotAHypernetwork
from hypernet.formats.load_save import content_digest


def same_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_a_folder_loads_with_diffusers_and_with_load(tmp_path):
    hypernetwork = Hypernetwork((10,), name="x")
    hypernet.save(hypernetwork, tmp_path / "x")
    pretrained = Hypernetwork.from_pretrained(tmp_path / "x")
    assert pretrained.config.name == "x" and same_tensors(pretrained, hypernetwork)
    for path in (tmp_path / "x", tmp_path / "x" / "diffusion_pytorch_model.safetensors"):
        loaded = hypernet.load(path)
        assert not loaded.training and same_tensors(loaded, hypernetwork)


def test_loads_what_save_pretrained_writes(tmp_path):
    Hypernetwork((10,)).save_pretrained(tmp_path / "x")  # without the config in the weights file
    assert hypernet.load(tmp_path / "x").config.name == "hypernetwork"
    (tmp_path / "x" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    with pytest.raises(NotAHypernetwork, match="config.json.*UNet2DConditionModel"):
        hypernet.load(tmp_path / "x")


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for name in ("a.pt", "b.safetensors", "c"):
        hypernet.save(Hypernetwork([16], step=3), f"~/{name}")
        assert (tmp_path / name).exists() and hypernet.load(f"~/{name}").config.step == 3


def test_a_path_of_another_system_is_named_as_such():
    with pytest.raises(NotAHypernetwork, match=r"^E:\\a\.pt: .*Windows"):
        hypernet.load("E:\\a.pt")


def test_names_a_path_or_hub_id_that_does_not_exist(tmp_path):
    with pytest.raises(NotAHypernetwork, match=str(tmp_path / "y")):
        hypernet.load(tmp_path / "y")
    with pytest.raises(NotAHypernetwork, match="^somebody/neon-1.5: .*Hub"):
        hypernet.load("somebody/neon-1.5")


def test_a_safetensors_file_is_self_contained(tmp_path):
    hypernetwork, path = Hypernetwork((10,), activation="mish", step=5), tmp_path / "alone.safetensors"
    hypernet.save(hypernetwork, path)
    loaded = hypernet.load(path)
    assert loaded.config.name == "alone" and loaded.config.activation == "mish" and loaded.config.step == 5
    assert same_tensors(loaded, hypernetwork)
    content = path.read_bytes()
    for damaged in (content[:-9] + bytes([content[-9] ^ 1]) + content[-8:], content.replace(b"mish", b"relu")):
        path.write_bytes(damaged)
        with pytest.raises(NotAHypernetwork, match="alone.safetensors.*checksum"):
            hypernet.load(path)


def test_a_folders_config_may_differ_from_its_weights_file_in_step_only(tmp_path):
    """A crash between the two files leaves the old step in config.json; any other difference is an edit by hand."""
    hypernet.save(Hypernetwork((10,), name="x", step=5), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "step": 4}))
    assert hypernet.load(tmp_path).config.step == 5
    (tmp_path / "config.json").write_text(json.dumps({**config, "activation": "relu"}))
    with pytest.raises(NotAHypernetwork, match="config.json.*activation"):
        hypernet.load(tmp_path)
    (tmp_path / "config.json").unlink()
    assert hypernet.load(tmp_path).config.name == "x"


def test_saving_to_a_folder_keeps_its_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    hypernet.save(Hypernetwork((10,), name="x"), tmp_path, torch.float16)
    loaded = hypernet.load(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine" and loaded.stored_dtype is torch.float16
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "notes.txt",
    ]


def one_line_error(path):
    with pytest.raises(NotAHypernetwork) as error:
        hypernet.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("form", ["alone.safetensors", "folder"])
def test_refuses_every_flipped_bit(tmp_path, form):
    path = tmp_path / form
    hypernet.save(Hypernetwork((10,), name="x"), path)
    file = path if path.is_file() else path / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    rng = random.Random(0)
    header = range(8, 8 + int.from_bytes(content[:8], "little"))
    for place in [*header, *(rng.randrange(len(content)) for _ in range(100))]:
        file.write_bytes(content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :])
        one_line_error(path)


def test_refuses_configs_with_impossible_values(tmp_path):
    hypernetwork = Hypernetwork((10,), name="x")
    hypernet.save(hypernetwork, tmp_path / "good.safetensors")
    weights = load_file(tmp_path / "good.safetensors")
    config = dict(hypernetwork.config)
    changes = [{"": 1}, {"unknown": 1}, {"activation": "gaussian"}, {"layer_structure": [1, 1e12, 1]}, {"widths": []}]
    changes += [{"widths": [10, 10]}, {"widths": [10.0]}, {"layer_structure": [1, float("nan"), 1]}, {"name": 5}]
    changes += [{"step": step} for step in ("abc", [1], None, -5, 1e400, True)]
    changes += [{"base_model_name": []}, {"optional_info": {}}, {"activate_output": "no"}, {"layer_norm": None}]
    texts = [json.dumps({**config, **change}) for change in changes] + ["[" * 200_000, "null", "5", "", '{"a": NaN']
    for text in texts:
        metadata = {"hypernetwork": text, "sha256": content_digest(text, weights)}
        save_file(weights, tmp_path / "bad.safetensors", metadata)
        assert len(one_line_error(tmp_path / "bad.safetensors")) < len(str(tmp_path)) + 400


class Call:
    """Pickles as a call of print."""

    def __reduce__(self):
        return print, ()


WEIGHT, LAYER = torch.zeros(2, 2), "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k"


@pytest.mark.parametrize(
    "data, kind",
    [
        ({"string_to_param": {"*": WEIGHT}, "name": "x"}, "textual inversion"),
        ({f"lora_unet_{LAYER}.lora_down.weight": WEIGHT}, "LoRA"),
        ({f"unet.{LAYER}.lora_A.weight": WEIGHT}, "LoRA"),
        ({"state_dict": {"model.diffusion_model.out.0.weight": WEIGHT}}, "Stable Diffusion"),
        ({"state_dict": {"model.diffusion_model.x": WEIGHT}, "callback": Call()}, "Stable Diffusion"),
        ({"encoder.conv_in.weight": WEIGHT}, "VAE"),
        ({"text_model.embeddings.position_ids": WEIGHT}, "text encoder"),
        ({"optimizer_name": "AdamW", "optimizer_state_dict": {}}, "WebUI optimizer"),
        (torch.optim.AdamW([torch.nn.Parameter(WEIGHT)]).state_dict(), "optimizer"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_what_a_pickle_is_instead(tmp_path, data, kind):
    for zipped in (False, True):
        torch.save(data, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(NotAHypernetwork, match=f"x.pt: .* {kind}"):
            hypernet.load(tmp_path / "x.pt")


@pytest.mark.parametrize(
    "content, kind",
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!doctype html><html>", "web page"),
        (b"", "empty"),
        (b"hello", "hypernetwork"),
    ],
    ids=["image", "pointer", "web page", "empty", "text"],
)
def test_names_what_a_file_is_instead(tmp_path, content, kind):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(NotAHypernetwork, match=f"x.pt: .*{kind}"):
        hypernet.load(tmp_path / "x.pt")


def test_names_what_a_safetensors_file_is_instead(tmp_path):
    save_file({f"lora_unet_{LAYER}.lora_down.weight": WEIGHT}, tmp_path / "x.safetensors")
    with pytest.raises(NotAHypernetwork, match="x.safetensors: .* LoRA"):
        hypernet.load(tmp_path / "x.safetensors")
