"""The `.pt.optim` file beside a WebUI `.pt`, so that training can move to the WebUI and back with AdamW's state."""

from pathlib import Path
from typing import Any

import torch

from hypernet.formats.safe_pickle import NotAHypernetwork, read_plain, write_plain
from hypernet.formats.trained_folder import find_optimizer_file
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.utils.hashing import file_sha256

KIND = "an optimizer file"  # in messages
MOMENTS = {"exp_avg", "exp_avg_sq"}  # AdamW's state of a parameter, besides its step


def optim_path(path: str | Path) -> Path:
    """Return `style.pt.optim` for `style.pt`, where the WebUI looks for it."""
    return Path(f"{path}.optim")


def short_hash(path: str | Path) -> str:
    """Return the first ten hex digits of the file's SHA-256, by which an `.optim` refers to its `.pt`."""
    return file_sha256(path)[:10]


def save_optim(optimizer_state: dict[str, Any], path: str | Path) -> None:
    """Write AdamW's state beside the WebUI file `path`, which must exist already because its hash goes in.

    The WebUI numbers parameters as `Hypernetwork.parameters()` does: width by width in the file's order, K before V.
    The choice of kernel (`fused`, `foreach`) is reset, because another PyTorch may not have it.

    Args:
        optimizer_state: `state_dict()` of a `torch.optim.AdamW` over the hypernetwork's parameters.
    """
    groups = [{**group, "fused": None, "foreach": None} for group in optimizer_state["param_groups"]]
    states = {
        index: {name: torch.as_tensor(state[name]).detach().cpu().clone() for name in ("step", *sorted(MOMENTS))}
        for index, state in optimizer_state["state"].items()
    }
    data = {
        "optimizer_name": "AdamW",
        "hash": short_hash(path),
        "optimizer_state_dict": {"state": states, "param_groups": groups},
    }
    write_plain(data, optim_path(path))


def find_optimizer(source: str | Path, hypernetwork: Hypernetwork) -> tuple[dict[str, Any] | None, str]:
    """Find AdamW's state that belongs to a hypernetwork.

    Args:
        source: a checkpoint, a run folder (its checkpoint of the same step counts), or a WebUI `.pt`.

    Returns:
        The state, or None; and a line that says which file it is from, or why there is none.

    Raises:
        NotAHypernetwork: if there is one, but it is damaged or belongs to another hypernetwork.
    """
    source = Path(source)
    if source.suffix.lower() == ".pt":
        return load_optim(source, hypernetwork)
    file = find_optimizer_file(source, hypernetwork.config.step)
    if file is None:
        return None, "there is no optimizer state: the optimizer starts from scratch"
    state = read_plain(file, kind=KIND)
    return check_adamw(file, state if isinstance(state, dict) else {}, hypernetwork), f"optimizer state from {file}"


def load_optim(path: str | Path, hypernetwork: Hypernetwork) -> tuple[dict[str, Any] | None, str]:
    """Read AdamW's state beside the WebUI file `path`; see `find_optimizer` for what it returns.

    A wrong hash alone is no reason to reject the state, because the WebUI itself writes one beside intermediate
    checkpoints. It is rejected if it also has more steps than the file. (Fewer are normal: steps whose gradients
    overflow are skipped.)

    Raises:
        NotAHypernetwork: if there is such a file, but it is damaged or belongs to another hypernetwork.
    """
    file = optim_path(path)
    if not file.is_file():
        return None, f"there is no {file.name} beside it: the optimizer starts from scratch"
    data = read_plain(file, kind=KIND)
    if not isinstance(data, dict) or not isinstance(data.get("optimizer_state_dict"), dict):
        raise NotAHypernetwork(f"{file}: it is not a WebUI optimizer file")
    if hypernetwork.config.skip_connection == "linear":  # the extension does not train the skip connections
        return None, f"{file.name} lacks the skip connections: the optimizer starts from scratch"
    if data.get("optimizer_name") != "AdamW":
        return None, f"{file.name} is not AdamW's: the optimizer starts from scratch"
    state = check_adamw(file, data["optimizer_state_dict"], hypernetwork)
    steps = {round(float(moments["step"])) for moments in state["state"].values()}
    if not steps:
        return None, f"{file.name} is empty: the optimizer starts from scratch"
    line = f"optimizer state from {file.name}"
    if data.get("hash") != short_hash(path):
        if max(steps) > hypernetwork.config.step + 1:
            return None, f"{file.name} belongs to another file, of step {max(steps)}: the optimizer starts from scratch"
        line += f" (step {max(steps)}); its hash is another file's, which is usual for the WebUI's checkpoints"
    return state, line


def check_adamw(file: Path, state: dict[str, Any], hypernetwork: Hypernetwork) -> dict[str, Any]:
    """Return the state if it is AdamW's for the parameters of `hypernetwork`.

    Raises:
        NotAHypernetwork: if it is not; the message names `file`.
    """
    shapes = [parameter.shape for parameter in hypernetwork.parameters()]
    states, groups = state.get("state"), state.get("param_groups")
    numbers = list(range(len(shapes)))
    fits = (
        isinstance(states, dict)
        and isinstance(groups, list)
        and [isinstance(group, dict) and group.get("params") for group in groups] == [numbers]
        and set(states) <= set(numbers)
        and all(_is_adamw(moments, shapes[index]) for index, moments in states.items())
    )
    if not fits:
        raise NotAHypernetwork(f"{file}: it is not an AdamW state of this hypernetwork")
    return state


def _is_adamw(moments: Any, shape: torch.Size) -> bool:
    """Return whether this is AdamW's state for a parameter of this shape, with finite values only."""
    if not isinstance(moments, dict) or not moments.keys() >= MOMENTS | {"step"}:
        return False
    if not all(_is_finite(moments[name]) and moments[name].shape == shape for name in MOMENTS):
        return False
    step = moments["step"]
    is_tensor = isinstance(step, torch.Tensor) and step.numel() == 1 and not step.is_complex()
    return (is_tensor or type(step) in (int, float)) and _is_finite(torch.as_tensor(step, dtype=torch.float32))


def _is_finite(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isfinite().all())


def rehash_optim(path: str | Path, old_hash: str) -> bool:
    """Update the hash in the `.optim` beside `path` to that of the current file, and return whether it was updated.

    Only an `.optim` with the old hash is updated, whatever its optimizer. One that cannot be read is left alone.
    """
    file = optim_path(path)
    try:
        data = read_plain(file, kind=KIND) if file.is_file() else None
    except NotAHypernetwork:
        return False
    if not isinstance(data, dict) or data.get("hash") != old_hash:
        return False
    write_plain({**data, "hash": short_hash(path)}, file)
    return True
