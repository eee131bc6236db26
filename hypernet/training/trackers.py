"""What a run tells W&B and TensorBoard: what it is, how it goes, what it draws."""

import importlib.metadata
import os
import re
import secrets
import subprocess
import sys
from pathlib import Path

import torch
from accelerate.utils import is_tensorboard_available, is_wandb_available

from hypernet.config import TrainingConfig
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError

PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "datasets", "bitsandbytes")


def choose_trackers(config: TrainingConfig) -> list[str]:
    """The trackers to report to.

    Raises:
        UserError: if one is asked for that is not installed.
    """
    wanted = {"all": ["tensorboard", "wandb"], "none": []}.get(config.report_to, [config.report_to])
    installed = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for tracker in wanted:
        if not installed[tracker]():
            raise UserError(f"--report_to {config.report_to}: {tracker} is not installed; pip install {tracker}")
    return wanted


def start_trackers(accelerator, trackers: list[str], config: TrainingConfig, output: RunFolder, label, fingerprint):
    """Begin a run in each tracker, or go on with it, with all options and `environment` as its config.

    `label` is its name, `fingerprint` that of the data.

    W&B without a login runs offline.
    """
    run = {}
    if "wandb" in trackers and accelerator.is_main_process:
        if not output.wandb_id.is_file():
            number = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # a sweep's agent names its run
            output.wandb_id.write_text(f"{number}\n{label}\n", encoding="utf-8")
        number, name = output.wandb_id.read_text(encoding="utf-8").split("\n")[:2]  # a resumed run keeps its name
        run = {"name": config.run_name or name, "dir": str(output.root), "mode": wandb_mode(), "id": number}
        run |= {} if run["mode"] == "offline" else {"resume": "allow"}  # offline, W&B joins them when they are sent
    described = {**vars(config), **environment(accelerator), "data_fingerprint": fingerprint}
    plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in described.items()}
    accelerator.init_trackers(config.tracker_project_name, config=plain, init_kwargs={"wandb": run})


def environment(accelerator) -> dict[str, str | int]:
    """What a run's result depends on beside its options: this repository's revision, versions, the device."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        revision = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except (OSError, subprocess.TimeoutExpired):
        revision = "unknown"
    versions = {f"version_{package}": _version(package) for package in PACKAGES}
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "git_revision": revision,
        "device": name,
        "num_processes": accelerator.num_processes,
        "version_python": python,
    } | versions


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def log_artifact(accelerator, config: TrainingConfig, output: RunFolder):
    """Upload the hypernetwork to use to W&B (`--log_artifact`)."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            artifact = wandb.Artifact(re.sub(r"[^A-Za-z0-9._-]", "_", config.name), type="hypernetwork")
            for path in output.exported_files():
                artifact.add_file(str(path))
            tracker.run.log_artifact(artifact)


def log_previews(accelerator, rows, prompts, step):
    """Send pictures to the trackers, each with its prompt; `rows` are None on all but the main process."""
    if rows is None:
        return
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            import wandb

            columns = ["step", "prompt", "number", "preview"]
            cells = [(prompt, i, image) for row, prompt in zip(rows, prompts) for i, image in enumerate(row)]
            table = wandb.Table(columns, [[step, prompt, i, wandb.Image(image)] for prompt, i, image in cells])
            images = [wandb.Image(image, caption=prompt) for prompt, _, image in cells]
            tracker.log({"previews": images, "preview_table": table}, step=step)  # to compare runs by, row by row
        elif tracker.name == "tensorboard":
            import numpy as np

            for row, prompt in zip(rows, prompts):
                pictures = np.stack([np.asarray(image) for image in row])
                tracker.log_images({prompt: pictures}, step=step, dataformats="NHWC")


def wandb_sync_line(accelerator) -> str | None:
    """How to send an offline W&B run to the site, if there is one."""
    for tracker in accelerator.trackers:
        if tracker.name == "wandb":
            return sync_line(tracker.run)
    return None


def wandb_mode() -> str | None:
    """The mode to begin a run in: online with a login, else offline; None where WANDB_MODE says it to W&B itself."""
    if "WANDB_MODE" in os.environ:
        return None
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error:
        return "offline"


def sync_line(run) -> str | None:
    """How to send an offline run to the site; None for one that is there already."""
    if run.settings.mode != "offline":
        return None
    folder = Path(run.dir).parent  # offline-run-DATE-ID; a resumed run has several
    several = len(list(folder.parent.glob(f"offline-run-*-{run.id}"))) > 1
    what = folder.parent / f"offline-run-*-{run.id}" if several else folder
    return f"W&B ran offline; after `wandb login`, send the run with: wandb sync {what}"
