"""Which programs read a file right, compared with their rules."""

import itertools
import os
import zipfile

import pytest
import torch
from torch import nn

import hypernet
from hypernet import Hypernetwork, inspect, save_webui
from hypernet.formats.compatibility import comfyui_problems, comfyui_reads
from hypernet.formats.webui import read_webui
from hypernet.modeling.from_weights import without_dropout
from tests.helpers.webui_files import save_residual

COMFYUI_ACTIVATIONS = {
    "linear": None,
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "elu": nn.ELU,
    "swish": nn.Hardswish,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softsign": nn.Softsign,
    "mish": nn.Mish,
}


def comfyui_output(data, part, x):
    """Apply a module by ComfyUI's rules; None if it refuses the activation.

    Every weight in the file is a layer, LayerNorms too; flags decide on dropout, which stays active (here: zeros).
    """
    function = data.get("activation_func", "linear")
    if function not in COMFYUI_ACTIVATIONS:
        return None
    norm, output = data.get("is_layer_norm", False), data.get("activate_output", False)
    weights = data[12][part]
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    place = 0
    while place < len(names):
        last, last_but_one = place == len(names) - 1, place == len(names) - 2
        x = nn.functional.linear(x, weights[f"{names[place]}.weight"], weights[f"{names[place]}.bias"])
        if COMFYUI_ACTIVATIONS[function] and (output or not last):
            x = COMFYUI_ACTIVATIONS[function]()(x)
        if norm:
            place += 1
            weight = weights[f"{names[place]}.weight"]
            x = nn.functional.layer_norm(x, weight.shape, weight, weights[f"{names[place]}.bias"])
        if data.get("use_dropout", False) and not last and (not last_but_one or data.get("last_layer_dropout", False)):
            x = torch.zeros_like(x)
        place += 1
    return x


@pytest.mark.parametrize("activation", [*COMFYUI_ACTIVATIONS, "gelu", "silu"])
def test_comfyui_counts_as_right_exactly_where_its_output_is_the_webuis(tmp_path, monkeypatch, activation):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # a hundred files
    x, path = torch.randn(4, 12), tmp_path / "a.pt"
    structures = [(1, 1), (1, 2, 1), (1, 2, 2, 1)]
    answers = set()
    kinds = ["none", "inner", "last", "end", "all"]
    for structure, norm, output, dropped in itertools.product(structures, [0, 1], [0, 1], kinds):
        inner = len(structure) - 2
        dropouts = {"none": None, "inner": (0, *[0.3] * (inner - 1), 0, 0), "last": (0, *[0.3] * inner, 0)}
        dropout = (dropouts | {"end": (0.2, *[0] * inner, 0.3), "all": (0, *[0.3] * inner, 0.3)})[dropped]
        if dropout is not None and len(dropout) != len(structure):
            continue
        torch.manual_seed(0)
        hypernetwork = Hypernetwork(
            (12,), structure, activation, "xavier_normal", bool(norm), "ones", bool(output), dropout
        )
        for parameter in hypernetwork.parameters():
            nn.init.normal_(parameter)
        save_webui(hypernetwork.eval(), path)
        data = read_webui(path)
        theirs = [comfyui_output(data, part, x) for part in (0, 1)]
        ours = [hypernetwork.pairs["12"][part](x) for part in ("k", "v")]
        same = all(their is not None and torch.allclose(their, our, atol=1e-5) for their, our in zip(theirs, ours))
        assert comfyui_reads(hypernetwork) == same == (not comfyui_problems(data))
        assert (inspect(path)["read_by"]["ComfyUI"] == "yes") == same
        plain = without_dropout(hypernetwork)
        assert all(torch.equal(plain(x)[i] - x, hypernetwork(x)[i] - x) for i in (0, 1))
        save_webui(plain, path)
        assert "dropout" not in inspect(path)["read_by"]["ComfyUI"]
        answers.add(same)
    assert answers == ({True, False} if activation in COMFYUI_ACTIVATIONS else {False})


@pytest.mark.parametrize("upsample", [None, "Linear"])
def test_only_the_extension_and_this_project_read_residual_files(tmp_path, upsample):
    path = tmp_path / "a.pt"
    save_residual(path, upsample=upsample)
    save_webui(hypernet.load(path), path)
    hypernet.save(hypernet.load(path), tmp_path / "folder")
    for report in (inspect(path), inspect(tmp_path / "folder")):
        answers = report["read_by"]
        assert answers["this project"] == "yes" and "MonkeyPatch" in answers["WebUI"]
        assert all(answer.startswith("no: ") for program, answer in answers.items() if program != "this project")
        assert report["skip_connection"] == {None: "nearest"}.get(upsample, "linear") and report["repairs"] == []
    assert not comfyui_reads(hypernet.load(path))


def test_missing_fields_mean_something_else_to_comfyui():
    assert not comfyui_problems({"activation_func": "linear"})
    assert not comfyui_problems({"activation_func": "relu", "activate_output": None})  # False to both
    for fields in ({"activation_func": None}, {"activation_func": "relu"}):
        (problem,) = comfyui_problems(fields)
        assert "--fix" in problem


def test_webui_versions_accept_different_zip_entries(tmp_path):
    path, plain = tmp_path / "a.pt", Hypernetwork((12,)).pairs["12"]
    data = {12: (plain["k"].state_dict(), plain["v"].state_dict()), "name": "a"}
    torch.save(data, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}

    def answer(*left_out):
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                if not name.endswith(left_out):
                    archive.writestr(name, content)
        return inspect(path)["read_by"]["WebUI"]

    assert answer(".format_version", ".storage_alignment", "byteorder", "serialization_id") == "yes"
    old = answer(".format_version", ".storage_alignment")
    assert old.startswith("no") and "1.9" in old and "--fix" in old
    new = answer()
    assert new.startswith("no") and "1.9" not in new and "--fix" in new
