"""The report on a file: every number, and its forms for the console and JSON."""

import json

import pytest
import torch
from torch import nn

import hypernet
from hypernet import Hypernetwork, inspect, save_webui
from hypernet.formats.inspect import describe, overview
from tests.helpers.webui_files import save_residual


@pytest.fixture
def style(tmp_path):
    """A hypernetwork, and the path of its WebUI file in float16."""
    torch.manual_seed(0)
    hypernetwork = Hypernetwork((320, 768), activation="relu", weight_init="kaiming_normal", step=1234)
    hypernetwork.register_to_config(base_model_name="sd", base_model_hash="0123456789")
    save_webui(hypernetwork, tmp_path / "style.pt", torch.float16)
    return hypernetwork, tmp_path / "style.pt"


def test_reports_the_files_content(style):
    hypernetwork, path = style
    report = inspect(path)
    assert json.loads(json.dumps(report)) == report
    expected = {
        "name": "style",
        "step": 1234,
        "widths": [320, 768],
        "made_for": "Stable Diffusion 1.x",
        "layer_structure": [1, 2, 1],
        "activation": "relu",
        "dropout_structure": None,
        "weight_init": "kaiming_normal",
        "base_model_name": "sd",
        "base_model_hash": "0123456789",
        "bytes": path.stat().st_size,
        "parameters": sum(parameter.numel() for parameter in hypernetwork.parameters()),
        "dtype": "float16",
        "optimizer": None,
        "repairs": [],
        "verdict": "alive",
    }
    assert {key: report[key] for key in expected} == expected


def test_reports_perturbation_and_norms_of_each_module(style):
    loaded = hypernet.load(style[1])
    modules = inspect(style[1])["modules"]
    assert [module["module"] for module in modules] == ["320 K", "320 V", "768 K", "768 V"]
    for module in modules:
        width, part = module["module"].split()
        mlp = loaded.pairs[width][part.lower()]
        x = torch.randn(256, int(width), generator=torch.Generator().manual_seed(0))
        assert module["perturbation"] == pytest.approx((mlp(x).norm() / x.norm()).item())
        assert module["norms"]["linear.2.weight"] == pytest.approx(mlp.linear[2].weight.norm().item())


def test_describes_a_report_for_the_console(style):
    report = inspect(style[1])
    text = describe(report)
    for fact in ("style", "1,234", "sd 0123456789", "1,2,1", "320, 768", "float16", "alive", "320 K", "768 V"):
        assert fact in text
    for program, answer in report["read_by"].items():
        assert f"{program} {answer}" in [" ".join(line.split()) for line in text.splitlines()]
    header, row = overview([report]).splitlines()
    assert row.split()[1:5] == ["1,234", "1,2,1", "relu", "1.x"] and "ComfyUI" in row


def test_a_folder_works_in_the_webui_once_converted(style, tmp_path):
    hypernet.save(style[0], tmp_path / "folder")
    answer = inspect(tmp_path / "folder")["read_by"]["WebUI"]
    assert answer.startswith("yes, ") and ".pt" in answer
    save_webui(style[0], tmp_path / "folder" / "hypernetwork.pt")
    answer = inspect(tmp_path / "folder")["read_by"]["WebUI"]
    assert answer.startswith("yes, ") and "hypernetwork.pt" in answer


def test_tells_dead_and_broken_modules(tmp_path):
    path = tmp_path / "a.pt"
    hypernetwork = Hypernetwork((12, 16), weight_init="zero")
    save_webui(hypernetwork, path)
    assert inspect(path)["verdict"].startswith("dead")
    assert all(module["dead"] for module in inspect(path)["modules"])
    nn.init.ones_(hypernetwork.pairs["12"]["k"].linear[1].bias)
    save_webui(hypernetwork, path)
    verdict = inspect(path)["verdict"]
    assert verdict.startswith("alive") and "12 V, 16 K, 16 V" in verdict
    hypernetwork.pairs["16"]["v"].linear[0].weight.data[3, 2] = float("nan")
    save_webui(hypernetwork, path)
    report = inspect(path)
    assert report["verdict"].startswith("broken") and "16 V" in report["verdict"]
    assert "nan" in describe(report)
    assert json.loads(json.dumps(report, allow_nan=False))["modules"][3]["perturbation"] is None


@pytest.mark.parametrize("residual", [False, True])
def test_names_the_fields_of_the_extension(style, tmp_path, residual):
    plain = torch.load(style[1], weights_only=True) | {"skip_connection": False, "upsample_linear": None}
    _ = save_residual(tmp_path / "style.pt") if residual else torch.save(plain, tmp_path / "style.pt")
    report = inspect(tmp_path / "style.pt")
    assert report["extension_fields"] == ["skip_connection", "upsample_linear"] and inspect(style[1])
    assert "skip_connection" in describe(report) and not any("skip" in line for line in report["repairs"])
    assert ("nearest" in describe(report)) == residual


def test_control_characters_in_notes_are_escaped(tmp_path):
    save_webui(Hypernetwork((12,), optional_info="\x1b[31mred\nstate alive\rx"), tmp_path / "a.pt")
    assert "\\x1b[31mred\\nstate alive\\rx" in describe(inspect(tmp_path / "a.pt"))
