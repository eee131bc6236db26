"""Report a run to W&B and TensorBoard: its options and environment, previews, the finished hypernetwork."""

import importlib.metadata
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError

if TYPE_CHECKING:
    from wandb import Run

PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "datasets", "bitsandbytes")


def choose_trackers(config: TrainingConfig) -> list[str]:
    """Return the names of the trackers to report to.

    Raises:
        UserError: if one of them is not installed.
    """
    trackers = {"all": ["tensorboard", "wandb"], "none": []}.get(config.report_to, [config.report_to])
    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for tracker in trackers:
        if not installed[tracker]():
            raise UserError(f"--report_to {config.report_to}: {tracker} is not installed; pip install {tracker}")
    return trackers


def start_trackers(
    accelerator: Accelerator,
    trackers: Sequence[str],
    config: TrainingConfig,
    folder: RunFolder,
    label: str,
    fingerprint: str,
) -> None:
    """Start a run in each tracker, or resume it, with all options and the environment as its config.

    Args:
        label: W&B's name for the run, unless `--run_name` is given.
        fingerprint: of the data.
    """
    run: dict[str, str | None] = {}
    if "wandb" in trackers and accelerator.is_main_process:
        if not folder.wandb_id.is_file():
            run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # a sweep's agent sets the variable
            folder.wandb_id.write_text(f"{run_id}\n{label}\n", encoding="utf-8")
        run_id, name = folder.wandb_id.read_text(encoding="utf-8").split("\n")[:2]  # a resumed run keeps its name
        run = {"name": config.run_name or name, "dir": str(folder.root), "mode": wandb_mode(), "id": run_id}
        run |= {} if run["mode"] == "offline" else {"resume": "allow"}  # offline parts are joined when they are synced
    values = {**vars(config), **environment(accelerator), "data_fingerprint": fingerprint}
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
    accelerator.init_trackers(config.tracker_project_name, config=plain, init_kwargs={"wandb": run})


def environment(accelerator: Accelerator) -> dict[str, str | int]:
    """Return what else the results depend on besides the options: the git revision, the device, the versions."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        revision = "unknown"
    device = accelerator.device
    return {
        "git_revision": revision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type),
        "num_processes": accelerator.num_processes,
        "version_python": ".".join(map(str, sys.version_info[:3])),
        **{f"version_{package}": _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def log_artifact(accelerator: Accelerator, config: TrainingConfig, folder: RunFolder) -> None:
    """Upload the exported hypernetwork to W&B (`--log_artifact`)."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9._-]", "_", str(config.name)), type="hypernetwork")
            for path in folder.exported_files():
                artifact.add_file(str(path))
            tracker.run.log_artifact(artifact)


def log_previews(
    accelerator: Accelerator, rows: list[list[Image.Image]] | None, prompts: Sequence[str], step: int
) -> None:
    """Log previews, a row per prompt; `rows` is None except on the main process."""
    if rows is None:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            columns = ["step", "prompt", "number", "preview"]
            cells = [(prompt, i, image) for row, prompt in zip(rows, prompts) for i, image in enumerate(row)]
            table = wandb.Table(columns, [[step, prompt, i, wandb.Image(image)] for prompt, i, image in cells])
            images = [wandb.Image(image, caption=prompt) for prompt, _, image in cells]
            tracker.log({"previews": images, "preview_table": table}, step=step)  # the table compares runs by row
        elif tracker.name == "tensorboard":
            import numpy as np

            for row, prompt in zip(rows, prompts):
                stacked = np.stack([np.asarray(image) for image in row])
                tracker.log_images({prompt: stacked}, step=step, dataformats="NHWC")


def wandb_mode() -> str | None:
    """Return the mode to start W&B in: online with a login, else offline; None if WANDB_MODE sets it."""
    if "WANDB_MODE" in os.environ:
        return None
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error:
        return "offline"


def wandb_sync_line(accelerator: Accelerator) -> str | None:
    """Return `sync_line` of the W&B run, or None if there is no such run."""
    runs = [tracker.run for tracker in accelerator.trackers if tracker.name == "wandb"]
    return sync_line(runs[0]) if runs else None


def sync_line(run: "Run") -> str | None:
    """Return a line with the command that uploads an offline run; None for a run that is online."""
    if run.settings.mode != "offline":
        return None
    folder = Path(run.dir).parent  # offline-run-DATE-ID; a resumed run has several
    several = len(list(folder.parent.glob(f"offline-run-*-{run.id}"))) > 1
    target = folder.parent / f"offline-run-*-{run.id}" if several else folder
    return f"W&B ran offline; after `wandb login`, upload the run with: wandb sync {target}"
