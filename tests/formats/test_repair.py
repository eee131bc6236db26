"""Old and odd WebUI files are rewritten so that every program reads them alike, and nothing is lost."""

import zipfile

import pytest
import torch

import hypernet
from hypernet import Hypernetwork, UserError, inspect, save_webui
from hypernet.formats.inspect import describe
from hypernet.formats.repair import find_repairs, repair
from hypernet.formats.webui import OLD_LAYER_NAMES, read_webui
from hypernet.formats.webui_optimizer import load_optim, save_optim, short_hash
from tests.helpers.webui_files import save_old_webui


def same_tensors(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.fixture
def odd(tmp_path):
    """A file with everything that can be repaired, and its optimizer file."""
    path = tmp_path / "old.pt"
    save_old_webui(path, name="another", activation_func=None, step=3, extra=1)
    hypernetwork = hypernet.load(path)
    optimizer = torch.optim.AdamW(hypernetwork.parameters())
    sum(part.sum() for part in hypernetwork(torch.randn(2, 12))).backward()
    optimizer.step()
    save_optim(optimizer.state_dict(), path)
    return path


def test_inspect_lists_what_needs_repair(odd):
    report = inspect(odd)
    assert len(report["repairs"]) == 6
    assert "; ".join(report["repairs"]) in describe(report)
    for program in ("WebUI", "ComfyUI"):
        assert report["read_by"][program].startswith("no") and "--fix" in report["read_by"][program]


@pytest.mark.parametrize(
    "change, named",
    [
        ({"activation_func": None}, "None"),
        ({"name": "another"}, "name"),
        ({"is_layer_norm": ...}, "is_layer_norm"),
        ({"extra": 1}, "fields"),
        ({10: ({"linear.0.linear.0.bias": torch.ones(2)}, {})}, "skip_connection"),
    ],
    ids=["activation", "name", "missing field", "unknown field", "missing field of the extension"],
)
def test_finds_each_repair_alone(tmp_path, change, named):
    path = tmp_path / "a.pt"
    save_webui(Hypernetwork((12,)), path)
    data = read_webui(path)
    assert find_repairs(path, data) == []
    assert find_repairs(path, {**data, "skip_connection": False, "upsample_linear": None}) == []  # an extension's
    data = {key: value for key, value in {**data, **change}.items() if value is not ...}
    (phrase,) = find_repairs(path, data)
    assert named in phrase


def test_repair_rewrites_the_file_and_keeps_the_old_one(odd):
    content, before = odd.read_bytes(), hypernet.load(odd)
    repairs = repair(odd)
    assert len(repairs) == 8  # the optimizer's hash and the copy besides
    assert any("old.pt.optim" in line for line in repairs) and "old.pt.bak" in repairs[-1]
    assert odd.with_name("old.pt.bak").read_bytes() == content
    data = torch.load(odd, weights_only=True)
    assert not zipfile.is_zipfile(odd)
    assert (data["name"], data["activation_func"], data["step"]) == ("old", "linear", 3) and "extra" not in data
    assert not {name.partition(".")[0] for part in data[12] for name in part} & OLD_LAYER_NAMES.keys()
    assert same_tensors(hypernet.load(odd), before)


def test_a_repaired_file_works_everywhere_and_keeps_its_optimizer(odd):
    repair(odd)
    report = inspect(odd)
    assert report["read_by"]["WebUI"] == report["read_by"]["ComfyUI"] == "yes" and report["step"] == 3
    state, line = load_optim(odd, hypernet.load(odd))
    assert state is not None and "hash" not in line
    assert torch.load(f"{odd}.optim", weights_only=True)["hash"] == short_hash(odd)
    assert repair(odd) == []


@pytest.mark.parametrize("optim", ["another's", "SGD's", "damaged"])
def test_repair_changes_only_the_hash_of_its_own_optimizer(tmp_path, optim):
    path, file = tmp_path / "old.pt", tmp_path / "old.pt.optim"
    save_old_webui(path)
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


def test_repair_keeps_every_bit_of_a_file_with_two_dtypes(tmp_path):
    path = tmp_path / "a.pt"
    pairs = {width: Hypernetwork((width,)).pairs[str(width)] for width in (10, 12)}
    data = {width: tuple(pair[part].state_dict() for part in ("k", "v")) for width, pair in pairs.items()}
    for part in data[10]:
        part.update({name: tensor.half() for name, tensor in part.items()})
    torch.save(data, path)
    before = hypernet.load(path)
    repair(path)
    assert same_tensors(hypernet.load(path), before)


def test_repair_refuses_to_replace_an_older_backup(tmp_path):
    path = tmp_path / "old.pt"
    save_old_webui(path)
    assert repair(path)
    save_old_webui(path, name="another")
    content = path.read_bytes()
    with pytest.raises(UserError, match="old.pt.bak"):
        repair(path)
    assert path.read_bytes() == content
