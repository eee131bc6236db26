"""The output folder of a run: whose it is, its checkpoints, its loss file."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.errors import UserError
from hypernet.files import WEIGHTS_NAME, save_folder
from hypernet.replacing import remove, replacing
from hypernet.webui import save_webui

LOSS_COLUMNS = ("step", "epoch", "epoch_step", "loss", "learn_rate")  # the WebUI's


class OutputFolder:
    """Paths below `output_dir`, and the few things that are done with them."""

    def __init__(self, config: TrainingConfig):
        self.root = Path(config.output_dir)
        self.identity = config.run_identity()  # the options that must stay
        self.options = config.portable_options()
        self.checkpoints = self.root / "checkpoints"
        self.previews = self.root / "previews"
        self.logs = self.root / "logs"
        self.loss_csv = self.root / "hypernetwork_loss.csv"
        self.loss_plot = self.root / "loss.png"
        self.before_after = self.previews / "before_after.png"
        self.webui_file = self.root / f"{config.name}.pt"
        self.card = self.root / "README.md"
        self._run_file = self.root / "run.json"
        folders = [self.checkpoints, self.previews, self.logs, self.root / "wandb"]
        weights = [self.root / "config.json", self.root / WEIGHTS_NAME, self.webui_file]
        self._written = [*folders, *weights, self.loss_csv, self.loss_plot, self.card, self._run_file]

    def check(self, overwrite: bool) -> list[str]:
        """See that the folder is new, or empty, or holds this very run; what has changed in it that may change.

        Raises:
            UserError: if it holds another run (naming the options that differ) or other files.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--output_dir {self.root}: it is a file; name a folder")
        existing = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        if not os.access(existing, os.W_OK):
            raise UserError(f"--output_dir {self.root}: {existing} cannot be written to")
        if not self.root.exists() or not any(self.root.iterdir()):
            return []
        if not self._run_file.is_file():
            raise UserError(f"--output_dir {self.root}: it is not empty and holds no run; name a new folder")
        if overwrite:
            return []
        try:
            other = json.loads(self._run_file.read_text(encoding="utf-8"))
        except ValueError:
            other = {}
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
        other = {**defaults, **other}  # an option that the other run did not know yet had its default
        changed = [key for key, value in self.options.items() if other[key] != value]
        differing = [f"{key} (was {other[key]}, now {self.options[key]})" for key in changed if key in self.identity]
        if differing:
            problem = f"it holds another run; differing: {', '.join(differing[:4])}"
            raise UserError(f"--output_dir {self.root}: {problem}; name a new folder, or add --overwrite")
        silent = {"output_dir", "overwrite", "resume_from_checkpoint"}
        return [f"--{key} was {other[key]}, is now {self.options[key]}" for key in changed if key not in silent]

    def create(self, overwrite: bool):
        """Make the folder, after deleting the earlier run in it if `overwrite`, and sign it with this run's options."""
        if overwrite:
            for path in self._written:
                remove(path)
        self.previews.mkdir(parents=True, exist_ok=True)
        with replacing(self._run_file) as temporary:
            temporary.write_text(json.dumps(self.options, indent=2) + "\n", encoding="utf-8")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def states(self) -> list[Path]:
        """Complete training states, oldest step first."""
        found = [path for path in self.checkpoints.glob("step-*") if (path / "optimizer.bin").is_file()]
        return sorted(found, key=_step)

    def find_state(self, wanted: str) -> Path | None:
        """The training state to go on from: "latest", "none", or the name or path of one of this run's.

        Raises:
            UserError: if the one that is named does not exist.
        """
        states = self.states()
        if wanted in ("none", "latest"):
            return states[-1] if states and wanted == "latest" else None
        for state in states:
            if wanted == state.name or Path(wanted).resolve() == state.resolve():
                return state
        found = ", ".join(path.name for path in states) or "none"
        problem = f"{self.checkpoints} has no such training state; it has {found}"
        raise UserError(f"--resume_from_checkpoint {wanted}: {problem}")

    def go_back_to(self, step: int):
        """Forget what lies after `step`: the loss rows are dropped, later states are kept under another name."""
        if self.loss_csv.exists():
            rows = [row for row in self.read_losses() if int(row["step"]) <= step]
            with replacing(self.loss_csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, LOSS_COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
        for state in self.states():
            if _step(state) > step:
                aside = state.with_name(f"abandoned-{state.name}")
                remove(aside)
                state.rename(aside)

    def prune(self, limit: int | None):
        for path in self.states()[: -limit if limit else 0]:
            shutil.rmtree(path)

    def export(self, hypernetwork):
        """The hypernetwork to use: config.json and safetensors in the root, and the WebUI's file beside them."""
        save_folder(hypernetwork, self.root)
        save_webui(hypernetwork, self.webui_file)

    def log_loss(self, step, epoch, epoch_step, loss, rate):
        """Append a row to hypernetwork_loss.csv, as the WebUI writes it."""
        new = not self.loss_csv.exists()
        with open(self.loss_csv, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(LOSS_COLUMNS)
            writer.writerow([step, epoch, epoch_step, f"{loss:.7f}", rate])

    def read_losses(self) -> list[dict]:
        """The complete rows of the loss file."""
        if not self.loss_csv.exists():
            return []
        with open(self.loss_csv, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values()]


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))
