"""Report a run to W&B and TensorBoard: its options and environment, previews, the finished hypernetwork."""

import contextlib
import importlib.metadata
import math
import os
import secrets
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import is_tensorboard_available, is_wandb_available
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.training.failures import Failures
from hypernet.training.run_folder import RunFolder
from hypernet.training.wandb_rules import artifact_name, is_run_id
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError

if TYPE_CHECKING:
    from wandb import Run

TITLES = {"wandb": "W&B", "tensorboard": "TensorBoard"}
# Text options that are often one number
NUMBERS = ("learning_rate", "max_grad_norm", "max_grad_value", "resolution", "validation_resolution")
OFFLINE = "offline-run"  # how W&B's folders of offline runs begin
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


class Trackers:
    """The trackers of a run. If one fails, a line says so, and the run continues.

    Args:
        names: what `choose_trackers` returns.
    """

    def __init__(self, accelerator: Accelerator, names: Sequence[str], failures: Failures):
        self.accelerator, self.names, self.failures = accelerator, names, failures

    def start(self, config: TrainingConfig, folder: RunFolder, label: str, fingerprint: str) -> None:
        """Start a run in each tracker, or resume it, with all options and the environment as its config.

        Args:
            label: W&B's name for the run, unless `--run_name` is given.
            fingerprint: the fingerprint of the batches.
        """
        values = {**typed_options(config), **environment(self.accelerator), "data_fingerprint": fingerprint}
        plain = {key: value if isinstance(value, (int, float, str)) else str(value) for key, value in values.items()}
        started: list[GeneralTracker] = []
        for name in self.names:
            with self.failures.tolerate(f"{TITLES[name]} could not be started"):
                run = wandb_run(config, folder, label) if name == "wandb" and self.accelerator.is_main_process else {}
                self.accelerator.log_with, self.accelerator.trackers = [name], []
                tracked = values if name == "wandb" else plain  # TensorBoard refuses lists
                self.accelerator.init_trackers(config.tracker_project_name, tracked, {"wandb": run})
                started += self.accelerator.trackers
        self.accelerator.trackers = started

    def log(self, values: dict[str, float], step: int) -> None:
        """Log measurements."""
        self._each("could not log measurements", lambda tracker: tracker.log(values, step=step))

    def log_previews(self, rows: list[list[Image.Image]] | None, prompts: Sequence[str], step: int) -> None:
        """Log previews, a row per prompt; `rows` is None except on the main process."""
        if rows is not None:
            self._each("could not log previews", lambda tracker: _log_previews(tracker, rows, prompts, step))

    def summarize(self, result: dict[str, Any]) -> None:
        """Set the outcome of the run in W&B's summary, which comparisons and sweeps use."""
        numbers = {key: value for key, value in result.items() if isinstance(value, int | float)}
        finite = {key: value for key, value in numbers.items() if math.isfinite(value)}
        self._each("could not store the result", lambda tracker: tracker.run.summary.update(finite), only="wandb")

    def log_artifact(self, config: TrainingConfig, folder: RunFolder) -> None:
        """Upload the exported hypernetwork to W&B (`--log_artifact`)."""

        def upload(tracker: GeneralTracker) -> None:
            import wandb

            artifact = wandb.Artifact(artifact_name(str(config.name)), type="hypernetwork")
            for path in folder.exported_files():
                artifact.add_file(str(path))
            tracker.run.log_artifact(artifact)

        self._each("could not store the hypernetwork", upload, only="wandb")

    def sync_line(self) -> str | None:
        """Return `sync_line` of the W&B run, or None if there is no such run."""
        runs = [tracker.run for tracker in self.accelerator.trackers if tracker.name == "wandb"]
        return sync_line(runs[0]) if runs else None

    def finish(self) -> None:
        """End the trackers' runs."""
        self._each("could not be ended", lambda tracker: tracker.finish())
        self.accelerator.trackers = []

    def _each(self, failure: str, action: Callable[[Any], object], only: str | None = None) -> None:
        """Call `action` with each tracker on the main process, or with those of one name."""
        if self.accelerator.is_main_process:
            for tracker in self.accelerator.trackers:
                if only in (None, tracker.name):
                    with self.failures.tolerate(f"{TITLES[tracker.name]} {failure}"):
                        action(tracker)


def wandb_run(config: TrainingConfig, folder: RunFolder, label: str) -> dict[str, str | None]:
    """Return the arguments of wandb.init for a run folder; a resumed run keeps its id and name.

    Args:
        label: the name of a new run.
    """
    run_id, _, name = _read_text(folder.wandb_id).rstrip("\n").partition("\n")
    if not is_run_id(run_id):  # there is none yet, or the file is damaged
        run_id = os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4)  # a sweep's agent sets the variable
        name = label
        with atomic_write(folder.wandb_id) as temporary:
            temporary.write_text(f"{run_id}\n{name}\n", encoding="utf-8")
    run = {"name": config.run_name or name or label, "dir": str(folder.root), "mode": wandb_mode(), "id": run_id}
    return run if run["mode"] == "offline" else {**run, "resume": "allow"}  # offline parts are joined when synced


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def typed_options(config: TrainingConfig) -> dict[str, Any]:
    """Return all options; a schedule or resolution that is a single number is returned as a number."""
    values = dict(vars(config))
    for name, text in [(name, values[name]) for name in NUMBERS]:
        for kind in (float, int):  # an int where it is one
            with contextlib.suppress(ValueError, TypeError):  # a schedule, or None
                values[name] = kind(text)
    return values


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


def _log_previews(tracker: Any, rows: list[list[Image.Image]], prompts: Sequence[str], step: int) -> None:
    if tracker.name == "wandb":
        import wandb

        columns = ["step", "prompt", "number", "preview"]
        cells = [(prompt, i, image) for row, prompt in zip(rows, prompts) for i, image in enumerate(row)]
        table = wandb.Table(columns, [[step, prompt, i, wandb.Image(image)] for prompt, i, image in cells])
        padded = pad_to_same_size([image for *_, image in cells])  # W&B shows the images of a list at one size
        images = [wandb.Image(image, caption=prompt) for image, (prompt, *_) in zip(padded, cells)]
        tracker.log({"previews": images, "preview_table": table}, step=step)  # the table compares runs by row
    elif tracker.name == "tensorboard":
        import numpy as np

        for row, prompt in zip(rows, prompts):
            stacked = np.stack([np.asarray(image) for image in row])
            tracker.log_images({prompt: stacked}, step=step, dataformats="NHWC")


def pad_to_same_size(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Return images on white, each centered, with the width and height of the largest."""
    width, height = max(image.width for image in images), max(image.height for image in images)
    padded = [Image.new("RGB", (width, height), "white") for _ in images]
    for canvas, image in zip(padded, images):
        canvas.paste(image, ((width - image.width) // 2, (height - image.height) // 2))
    return padded


def wandb_mode() -> str | None:
    """Return the mode to start W&B in: online with a login, else offline; None if WANDB_MODE sets it."""
    if "WANDB_MODE" in os.environ:
        return None
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error:
        return "offline"


def sync_line(run: "Run") -> str | None:
    """Return a line with the command that uploads an offline run; None for a run that is online."""
    if run.settings.mode != "offline":
        return None
    folder = Path(run.dir).parent  # offline-run-DATE-ID; a resumed run has several
    several = len(list(folder.parent.glob(f"{OFFLINE}-*-{run.id}"))) > 1
    place, name = shlex.quote(str(folder.parent)), f"{OFFLINE}-*-{run.id}" if several else folder.name
    return f"W&B ran offline; after `wandb login`, upload the run with: wandb sync {place}/{name}"


def sync_command(folders: Sequence[Path]) -> str | None:
    """Return one command that uploads the offline W&B runs of several run folders; None if nothing is left to upload."""
    folders = [folder for folder in folders if _has_offline_run(folder)]
    if not folders:
        return None
    places = [shlex.quote(str(folder)) for folder in folders]
    parents = {folder.parent for folder in folders}
    beside = [folder for parent in parents for folder in parent.iterdir() if _has_offline_run(folder)]
    if len(parents) == 1 and len(folders) > 1 and set(beside) == set(folders):  # no other run would be uploaded
        places = [f"{shlex.quote(str(*parents))}/*"]
    return " ".join(["wandb sync", *(f"{place}/wandb/{OFFLINE}-*" for place in places)])


def _has_offline_run(folder: Path) -> bool:
    """Whether a run folder holds an offline W&B run that `wandb sync` has not marked as uploaded."""
    return any(not any(run.glob("*.wandb.synced")) for run in folder.glob(f"wandb/{OFFLINE}-*"))
