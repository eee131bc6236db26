"""The optimizer's state beside a WebUI `.pt`, so that a training can move there and back."""

from pathlib import Path

import torch

from hypernet.formats.safe_pickle import NotAHypernetwork, read_plain, write_plain
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.utils.hashing import file_sha256

WHAT = "optimizer's state"
ADAM = {"exp_avg", "exp_avg_sq"}  # what AdamW keeps of each parameter, beside its step


def optim_path(path) -> Path:
    """`style.pt.optim` for `style.pt`, where the WebUI looks for it."""
    return Path(f"{path}.optim")


def short_hash(path) -> str:
    """The first ten hex digits of the file's sha256, by which an `.optim` names its `.pt`."""
    return file_sha256(path)[:10]


def save_optim(optimizer_state: dict, path):
    """Write AdamW's state beside the WebUI file `path`, which must be there already: its hash goes in.

    The WebUI numbers parameters by the widths in the file's order, K before V, as `Hypernetwork.parameters()` does.
    What asks for a particular kernel (`fused`, `foreach`) is left out, for another PyTorch may not have it.

    Args:
        optimizer_state: `state_dict()` of a `torch.optim.AdamW` over the hypernetwork's parameters.
    """
    groups = [{**group, "fused": None, "foreach": None} for group in optimizer_state["param_groups"]]
    states = {
        index: {name: torch.as_tensor(state[name]).detach().cpu().clone() for name in ("step", *sorted(ADAM))}
        for index, state in optimizer_state["state"].items()
    }
    data = {
        "optimizer_name": "AdamW",
        "hash": short_hash(path),
        "optimizer_state_dict": {"state": states, "param_groups": groups},
    }
    write_plain(data, optim_path(path))


def load_optim(path, hypernetwork: Hypernetwork) -> tuple[dict | None, str]:
    """AdamW's state beside the WebUI file `path`, and a line on what was found.

    A wrong hash is said but not held against it unless it counts more steps than the file: the WebUI itself writes it on
    intermediate checkpoints, whose optimizer is then lost there. (It may count fewer: a step that overflowed is skipped.)

    Raises:
        NotAHypernetwork: if there is such a file, but it is damaged or of another hypernetwork.
    """
    file = optim_path(path)
    if not file.is_file():
        return None, f"there is no {file.name} beside it: the optimizer starts anew"
    data = read_plain(file, what=WHAT)
    if not isinstance(data, dict) or not isinstance(data.get("optimizer_state_dict"), dict):
        raise NotAHypernetwork(f"{file}: it is no optimizer's state of the WebUI")
    if data.get("optimizer_name") != "AdamW":
        return None, f"{file.name} is not AdamW's: the optimizer starts anew"
    state = check_adamw(file, data["optimizer_state_dict"], hypernetwork)
    steps = {round(float(moment["step"])) for moment in state["state"].values()}
    if not steps:
        return None, f"{file.name} is empty: the optimizer starts anew"
    line = f"the optimizer goes on from {file.name}"
    if data.get("hash") != short_hash(path):
        if max(steps) > hypernetwork.config.step + 1:
            return None, f"{file.name} belongs to another file, of step {max(steps)}: the optimizer starts anew"
        line += f" (of step {max(steps)}), although its hash is another file's, as the WebUI writes it on checkpoints"
    return state, line


def check_adamw(file, state, hypernetwork: Hypernetwork) -> dict:
    """The state, if it is AdamW's over the parameters of `hypernetwork`.

    Raises:
        NotAHypernetwork: if it is not, naming `file`.
    """
    shapes = [parameter.shape for parameter in hypernetwork.parameters()]
    moments, groups = state.get("state"), state.get("param_groups")
    fits = isinstance(moments, dict) and isinstance(groups, list) and len(groups) == 1 and isinstance(groups[0], dict)
    fits = fits and groups[0].get("params") == list(range(len(shapes))) and set(moments) <= set(range(len(shapes)))
    for index, moment in moments.items() if fits else ():
        fits = fits and isinstance(moment, dict) and moment.keys() >= ADAM | {"step"}
        fits = fits and all(_finite(moment[name]) and moment[name].shape == shapes[index] for name in ADAM)
        fits = fits and _finite(
            torch.as_tensor(moment["step"], dtype=torch.float32) if _is_number(moment["step"]) else None
        )
    if not fits:
        raise NotAHypernetwork(f"{file}: it is no AdamW state of this hypernetwork")
    return state


def _is_number(value):
    one = isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_complex()
    return one or type(value) in (int, float)


def _finite(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isfinite().all())


def rehash_optim(path, old_hash: str) -> bool:
    """Let the `.optim` beside `path` name the file as it is now, if it named the old one; whether it did.

    Whatever optimizer it is of, and whatever else is in it, stays; one that cannot be read is left alone.
    """
    file = optim_path(path)
    try:
        data = read_plain(file, what=WHAT) if file.is_file() else None
    except NotAHypernetwork:
        return False
    if not isinstance(data, dict) or data.get("hash") != old_hash:
        return False
    write_plain({**data, "hash": short_hash(path)}, file)
    return True


def find_optimizer(source, hypernetwork: Hypernetwork) -> tuple[dict | None, str]:
    """AdamW's state that belongs to what `source` is, and a line on what was found: in a training state, in a trained
    folder's state of the same step, or beside a `.pt`.

    Raises:
        NotAHypernetwork: if there is one, but it is damaged or of another hypernetwork.
    """
    source = Path(source)
    if source.suffix.lower() == ".pt":
        return load_optim(source, hypernetwork)
    states = [source, source / "checkpoints" / f"step-{hypernetwork.config.step:06d}"]
    for file in (state / "optimizer.bin" for state in states):
        if file.is_file():
            state = read_plain(file, what=WHAT)
            state = check_adamw(file, state if isinstance(state, dict) else {}, hypernetwork)
            return state, "the optimizer goes on, too"
    return None, "there is no optimizer's state: the optimizer starts anew"
