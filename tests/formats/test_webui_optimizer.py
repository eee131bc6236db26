"""The optimizer file beside a WebUI `.pt`: what the WebUI reads, and what is read back."""

import hashlib

import pytest
import torch

from hypernet import Hypernetwork, NotAHypernetwork, save_webui
from hypernet.formats.webui_optimizer import find_optimizer, load_optim, save_optim
from tests.helpers.webui_files import ALLOWED_GLOBALS, globals_of


def train(hypernetwork, steps=2):
    """Return an AdamW of the hypernetwork after some steps on random contexts."""
    optimizer = torch.optim.AdamW(hypernetwork.parameters(), lr=1e-2)
    for seed in range(steps):
        generator = torch.Generator().manual_seed(seed)
        contexts = [torch.randn(2, 3, int(width), generator=generator) for width in hypernetwork.pairs]
        sum(part.square().mean() for x in contexts for part in hypernetwork(x)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@pytest.fixture
def saved(tmp_path):
    """A hypernetwork, its `.pt`, and the state in the `.pt.optim` beside it."""
    hypernetwork, path = Hypernetwork((12, 10)), tmp_path / "style.pt"
    state = train(hypernetwork).state_dict()
    save_webui(hypernetwork, path)
    save_optim(state, path)
    return hypernetwork, path, state


def test_webui_continues_with_the_saved_optimizer(tmp_path):
    """The WebUI orders parameters by the widths in the file, K before V, and finds the file by the .pt's hash."""
    hypernetwork, path = Hypernetwork((12, 10), activation="relu"), tmp_path / "style.pt"
    optimizer = train(hypernetwork)
    save_webui(hypernetwork, path)
    save_optim(optimizer.state_dict(), path)
    assert globals_of(tmp_path / "style.pt.optim") <= ALLOWED_GLOBALS
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


def assert_same_moments(loaded, expected):
    assert loaded["state"].keys() == expected["state"].keys()
    for index, moments in loaded["state"].items():
        for name, value in moments.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected["state"][index][name]))


def test_loads_the_state_beside_the_file(saved):
    hypernetwork, path, state = saved
    loaded, line = load_optim(path, hypernetwork)
    assert_same_moments(loaded, state)
    assert find_optimizer(path, hypernetwork)[1] == line and "style.pt.optim" in line


def test_a_hash_of_another_file_matters_only_with_too_many_steps(saved):
    hypernetwork, path, state = saved  # of 2 steps
    hypernetwork.register_to_config(step=3)
    save_webui(hypernetwork, path)
    loaded, line = load_optim(path, hypernetwork)
    assert_same_moments(loaded, state)
    assert "hash" in line
    hypernetwork.register_to_config(step=0)
    save_webui(hypernetwork, path)
    loaded, line = load_optim(path, hypernetwork)
    assert loaded is None and "style.pt.optim" in line and "step 2" in line


def test_no_state_is_loaded_without_a_file_or_from_another_optimizer(saved):
    hypernetwork, path, _ = saved
    torch.save({"optimizer_name": "SGD", "optimizer_state_dict": {}}, f"{path}.optim")
    state, line = load_optim(path, hypernetwork)
    assert state is None and "style.pt.optim" in line and "AdamW" in line
    path.with_name("style.pt.optim").unlink()
    state, line = load_optim(path, hypernetwork)
    assert state is None and "style.pt.optim" in line


def test_refuses_the_state_of_another_structure(saved):
    _, path, _ = saved
    with pytest.raises(NotAHypernetwork, match="style.pt.optim"):
        load_optim(path, Hypernetwork((12, 10), (1, 3, 1)))


@pytest.mark.parametrize(
    "change",
    [
        {"step": None},
        {"step": torch.ones(2)},
        {"step": float("nan")},
        {"step": torch.tensor(torch.inf)},
        {"exp_avg": torch.ones(12, 12).long()},
        {"exp_avg": 5},
    ],
    ids=["no step", "two steps", "NaN step", "infinite step", "integer moment", "number as moment"],
)
def test_refuses_moments_that_are_not_adamws(saved, change):
    hypernetwork, path, state = saved
    state["state"][0] = {**state["state"][0], **change}
    torch.save({"optimizer_name": "AdamW", "optimizer_state_dict": state}, f"{path}.optim")
    with pytest.raises(NotAHypernetwork, match="style.pt.optim"):
        load_optim(path, hypernetwork)


def test_refuses_a_damaged_file(saved):
    hypernetwork, path, _ = saved
    file = path.with_name("style.pt.optim")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(NotAHypernetwork, match="style.pt.optim"):
        load_optim(path, hypernetwork)
    torch.save({"optimizer_name": "AdamW", "optimizer_state_dict": {"state": 1}}, file)
    with pytest.raises(NotAHypernetwork, match="style.pt.optim"):
        load_optim(path, hypernetwork)


def test_finds_the_state_of_a_checkpoint_and_of_a_runs_last_checkpoint(saved, tmp_path):
    hypernetwork, _, state = saved
    hypernetwork.register_to_config(step=2)
    checkpoint = tmp_path / "run" / "checkpoints" / "step-000002"
    assert find_optimizer(tmp_path / "run", hypernetwork)[0] is None
    checkpoint.mkdir(parents=True)
    torch.save(state, checkpoint / "optimizer.bin")
    for source in (tmp_path / "run", checkpoint):
        loaded, line = find_optimizer(source, hypernetwork)
        assert_same_moments(loaded, state)
        assert "optimizer.bin" in line
    hypernetwork.register_to_config(step=3)
    assert find_optimizer(tmp_path / "run", hypernetwork)[0] is None
