"""What is said of a file, held against what the programs do with it."""

import itertools
import json
import zipfile

import pytest
import torch
from torch import nn

import hypernet
from hypernet import Hypernetwork, examine, save_webui
from hypernet.formats.compatibility import comfyui_problems, comfyui_reads
from hypernet.formats.inspect import describe
from hypernet.formats.repair import repair
from hypernet.formats.webui import read_webui
from hypernet.formats.webui_optimizer import load_optim, save_optim, short_hash

COMFYUI = {
    "linear": None, "relu": nn.ReLU, "leakyrelu": nn.LeakyReLU, "elu": nn.ELU, "swish": nn.Hardswish,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "softsign": nn.Softsign, "mish": nn.Mish,
}  # fmt: skip


def as_comfyui_draws(data, part, x):
    """Its rules: every weight in the file is a layer, LayerNorms too; flags decide; dropouts stay active (here: 0 all)."""
    function = data.get("activation_func", "linear")
    if function not in COMFYUI:
        return None
    norm, output = data.get("is_layer_norm", False), data.get("activate_output", False)
    names = [name.removesuffix(".weight") for name in data[12][part] if name.endswith(".weight")]
    place = 0
    while place < len(names):
        weights = data[12][part]
        last, last_but_one = place == len(names) - 1, place == len(names) - 2
        x = nn.functional.linear(x, weights[f"{names[place]}.weight"], weights[f"{names[place]}.bias"])
        if COMFYUI[function] and (output or not last):
            x = COMFYUI[function]()(x)
        if norm:
            place += 1
            weight = weights[f"{names[place]}.weight"]
            x = nn.functional.layer_norm(x, weight.shape, weight, weights[f"{names[place]}.bias"])
        if data.get("use_dropout", False) and not last and (not last_but_one or data.get("last_layer_dropout", False)):
            x = torch.zeros_like(x)
        place += 1
    return x


@pytest.mark.parametrize("activation", [*COMFYUI, "gelu", "silu"])
def test_who_reads_it_right(tmp_path, activation):
    """The table says yes exactly where ComfyUI's rules lead to the WebUI's result."""
    x, path = torch.randn(4, 12), tmp_path / "a.pt"
    structures = [(1, 1), (1, 2, 1), (1, 2, 2, 1)]
    answers = set()
    for structure, norm, output, dropped in itertools.product(structures, [0, 1], [0, 1], ["none", "inner", "last"]):
        inner = len(structure) - 2
        dropout = {"none": None, "inner": (0, *[0.3] * (inner - 1), 0, 0), "last": (0, *[0.3] * inner, 0)}[dropped]
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
        theirs = [as_comfyui_draws(data, part, x) for part in (0, 1)]
        ours = [hypernetwork.pairs["12"][part](x) for part in ("k", "v")]
        same = all(their is not None and torch.allclose(their, our, atol=1e-5) for their, our in zip(theirs, ours))
        assert comfyui_reads(hypernetwork) == same == (not comfyui_problems(data))
        assert (examine(path)["read_by"]["ComfyUI"] == "yes") == same
        plain = hypernet.modeling.hypernetwork.without_dropout(hypernetwork)
        assert all(torch.equal(plain(x)[i] - x, hypernetwork(x)[i] - x) for i in (0, 1))
        save_webui(plain, path)
        reason = examine(path)["read_by"]["ComfyUI"]
        assert "dropout" not in reason
        answers.add(same)
    assert answers == ({True, False} if activation in COMFYUI else {False})


def test_missing_fields_mean_other_things_elsewhere():
    assert not comfyui_problems({"activation_func": "linear"})
    assert "refuses activation None" in comfyui_problems({"activation_func": None})[0]
    assert "does not activate the output" in comfyui_problems({"activation_func": "relu"})[0]


def test_what_is_said_of_a_hypernetwork(tmp_path):
    torch.manual_seed(0)
    hypernetwork = Hypernetwork((320, 768), activation="relu", weight_init="kaiming_normal", step=1234)
    hypernetwork.register_to_config(base_model_name="sd", base_model_hash="0123456789")
    path = tmp_path / "style.pt"
    save_webui(hypernetwork, path, torch.float16)
    report = examine(path)
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
        "find_repairs": [],
        "verdict": "alive",
    }
    assert {key: report[key] for key in expected} == expected
    opened = hypernet.load(path)
    for module in report["modules"]:
        width, part = module["module"].split()
        mlp = opened.pairs[width][part.lower()]
        x = torch.randn(256, int(width), generator=torch.Generator().manual_seed(0))
        assert module["effect"] == pytest.approx((mlp(x).norm() / x.norm()).item())
        assert module["norms"]["linear.2.weight"] == pytest.approx(mlp.linear[2].weight.norm().item())
    text = describe(report)
    for word in (
        "style",
        "1,234 steps",
        "sd 0123456789",
        "1,2,1 over 320, 768",
        "float16",
        "alive",
        "ComfyUI       yes",
    ):
        assert word in text
    hypernet.save(hypernetwork, tmp_path / "folder")
    assert examine(tmp_path / "folder")["read_by"]["WebUI"] == "once it is converted to a .pt"


def test_dead_and_broken(tmp_path):
    path = tmp_path / "a.pt"
    hypernetwork = Hypernetwork((12, 16), weight_init="zero")
    save_webui(hypernetwork, path)
    assert examine(path)["verdict"].startswith("dead: it changes nothing")
    nn.init.ones_(hypernetwork.pairs["12"]["k"].linear[1].bias)
    save_webui(hypernetwork, path)
    assert examine(path)["verdict"] == "alive, but 12 V, 16 K, 16 V changes nothing"
    hypernetwork.pairs["16"]["v"].linear[0].weight.data[3, 2] = float("nan")
    save_webui(hypernetwork, path)
    assert examine(path)["verdict"].startswith("broken: not a number in 16 V")
    assert "nan" in describe(examine(path))
    assert json.loads(json.dumps(examine(path), allow_nan=False))["modules"][3]["effect"] is None


def test_a_note_cannot_move_the_cursor(tmp_path):
    save_webui(Hypernetwork((12,), optional_info="\x1b[31mred\nstate alive\rx"), tmp_path / "a.pt")
    assert "\\x1b[31mred\\nstate alive\\rx" in describe(examine(tmp_path / "a.pt"))


def old_file(path, **fields):
    """As the WebUI of October 2022 wrote it, with a torch of today."""
    modules = Hypernetwork((12,)).pairs["12"]
    names = {"linear.0": "linear1", "linear.1": "linear2"}
    data = {12: tuple({names[n[:8]] + n[8:]: t for n, t in modules[p].state_dict().items()} for p in ("k", "v"))}
    torch.save({**data, **fields}, path)
    return hypernet.load(path)


def test_mended(tmp_path):
    path = tmp_path / "old.pt"
    before = old_file(path, name="another", activation_func=None, step=3)
    optimizer = torch.optim.AdamW(before.parameters())
    sum(part.sum() for part in before(torch.randn(2, 12))).backward()
    optimizer.step()
    before = old_file(path, name="another", activation_func=None, step=3)
    save_optim(optimizer.state_dict(), path)
    report = examine(path)
    assert "finds it by its file name" in report["read_by"]["WebUI"] and "--fix" in describe(report)
    assert "; ".join(report["find_repairs"]) in describe(report) and "October 2022" in describe(report)
    assert "newer PyTorch" in report["read_by"]["WebUI"] and "refuses activation None" in report["read_by"]["ComfyUI"]
    content = path.read_bytes()
    mended = "; ".join(repair(path))
    for phrase in ("October 2022", "is None", "not the file's", "serialised", "the new file's hash", "old.pt.bak"):
        assert phrase in mended
    assert (tmp_path / "old.pt.bak").read_bytes() == content
    after = examine(path)
    assert after["read_by"]["WebUI"] == after["read_by"]["ComfyUI"] == "yes" and after["step"] == 3
    opened = hypernet.load(path)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(opened.state_dict().values(), before.state_dict().values())
    )
    assert load_optim(path, opened)[1] == "the optimizer goes on from old.pt.optim"
    assert repair(path) == []


@pytest.mark.parametrize("optim", ["another's", "SGD's", "damaged"])
def test_mending_leaves_other_optimizers(tmp_path, optim):
    path, file = tmp_path / "old.pt", tmp_path / "old.pt.optim"
    old_file(path)
    name, digest = ("SGD", short_hash(path)) if optim == "SGD's" else ("AdamW", "0123456789")
    torch.save({"optimizer_name": name, "hash": digest, "optimizer_state_dict": {"state": {}}}, file)
    if optim == "damaged":
        file.write_bytes(file.read_bytes()[:50])
    before = file.read_bytes()
    assert repair(path)
    if optim == "SGD's":
        assert torch.load(file, weights_only=True)["hash"] == short_hash(path)
    else:
        assert file.read_bytes() == before


def test_a_file_of_two_precisions_loses_none(tmp_path):
    path = tmp_path / "a.pt"
    pairs = {width: Hypernetwork((width,)).pairs[str(width)] for width in (10, 12)}
    data = {width: tuple(pair[part].state_dict() for part in ("k", "v")) for width, pair in pairs.items()}
    for part in data[10]:
        part.update({name: tensor.half() for name, tensor in part.items()})
    torch.save(data, path)
    before = hypernet.load(path)
    repair(path)
    after = hypernet.load(path)
    assert all(torch.equal(a, b) for a, b in zip(after.state_dict().values(), before.state_dict().values()))


def test_mended_once_more(tmp_path):
    path = tmp_path / "old.pt"
    old_file(path)
    assert repair(path)
    old_file(path, name="another")
    with pytest.raises(hypernet.UserError, match="old.pt.bak: it exists already"):
        repair(path)


def test_zip_entries_of_pytorch_versions(tmp_path):
    """The WebUI's list of what a zip may hold, by version."""
    path, plain = tmp_path / "a.pt", Hypernetwork((12,)).pairs["12"]
    data = {12: (plain["k"].state_dict(), plain["v"].state_dict()), "name": "a"}
    torch.save(data, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    for left_out, answer in [
        ((".format_version", ".storage_alignment", "byteorder", "serialization_id"), "yes"),
        ((".format_version", ".storage_alignment"), "no: refuses it before version 1.9 (--fix writes it anew)"),
        ((), "no: refuses what a newer PyTorch has written (--fix writes it anew)"),
    ]:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in records.items():
                if not name.endswith(left_out or ("nothing",)):
                    archive.writestr(name, content)
        assert examine(path)["read_by"]["WebUI"] == answer
