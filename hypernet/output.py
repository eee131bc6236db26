"""The output folder of a run: whose it is, its checkpoints, its loss file."""

import csv
import dataclasses
import json
import os
import shutil
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.errors import UserError
from hypernet.files import replacing

LOSS_COLUMNS = ("step", "epoch", "epoch_step", "loss", "learn_rate")  # the WebUI's
WEIGHT_FILES = ("config.json", "diffusion_pytorch_model.safetensors")


class OutputFolder:
    """Paths below `output_dir`, and the few things that are done with them."""

    def __init__(self, config: TrainingConfig):
        self.root = Path(config.output_dir)
        self.identity = config.run_identity()
        self.options = dataclasses.asdict(config)
        self.checkpoints = self.root / "checkpoints"
        self.previews = self.root / "previews"
        self.logs = self.root / "logs"
        self.loss_csv = self.root / "hypernetwork_loss.csv"
        self.loss_plot = self.root / "loss.png"
        self.before_after = self.previews / "before_after.png"
        self.webui_file = self.root / f"{config.name}.pt"
        self._run_file = self.root / "run.json"

    def check(self, overwrite: bool):
        """See that the folder is new, or empty, or holds this very run.

        Raises:
            UserError: if it holds another run (naming the options that differ) or other files.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--output_dir {self.root}: it is a file; name a folder")
        if not self.root.exists() or not any(self.root.iterdir()):
            return
        if not self._run_file.is_file():
            raise UserError(f"--output_dir {self.root}: it is not empty and holds no run; name a new folder")
        if overwrite:
            return
        try:
            other = json.loads(self._run_file.read_text(encoding="utf-8"))
        except ValueError:
            other = {}
        differing = sorted(key for key in self.identity if key not in other or other[key] != self.identity[key])
        if differing:
            shown = ", ".join(f"{key} (was {other.get(key)}, now {self.identity[key]})" for key in differing[:4])
            raise UserError(f"--output_dir {self.root}: it holds another run; differing: {shown}; name a new folder, or add --overwrite")

    def create(self, overwrite: bool):
        """Make the folder, after deleting the run in it if `overwrite`, and sign it with this run's options."""
        if overwrite and self._run_file.is_file():
            shutil.rmtree(self.root)
        self.previews.mkdir(parents=True, exist_ok=True)
        with replacing(self._run_file) as temporary:
            temporary.write_text(json.dumps(self.options, indent=2) + "\n", encoding="utf-8")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def states(self) -> list[Path]:
        """Complete training states, oldest first."""
        return sorted(path for path in self.checkpoints.glob("step-*") if path.is_dir())

    def find_state(self, wanted: str) -> Path | None:
        """The training state to go on from: "latest", "none", or a checkpoint's path or name.

        Raises:
            UserError: if the one that is named does not exist.
        """
        states = self.states()
        if wanted in ("none", "latest"):
            return states[-1] if states and wanted == "latest" else None
        for path in (Path(wanted), self.checkpoints / wanted):
            if (path / "optimizer.bin").is_file():
                return path
        found = ", ".join(path.name for path in states) or "none"
        raise UserError(f"--resume_from_checkpoint {wanted}: there is no training state; {self.checkpoints} has: {found}")

    def prune(self, limit: int | None):
        for path in self.states()[: -limit if limit else 0]:
            shutil.rmtree(path)

    def save_hypernetwork(self, hypernetwork):
        """config.json and safetensors into the root, each replaced at once."""
        with replacing(self.root / "export") as temporary:
            hypernetwork.save_pretrained(temporary)
        for name in WEIGHT_FILES:
            os.replace(self.root / "export" / name, self.root / name)
        shutil.rmtree(self.root / "export")

    def log_loss(self, step, epoch, epoch_step, loss, rate):
        """Append a row to hypernetwork_loss.csv, as the WebUI writes it."""
        new = not self.loss_csv.exists()
        with open(self.loss_csv, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(LOSS_COLUMNS)
            writer.writerow([step, epoch, epoch_step, f"{loss:.7f}", rate])

    def read_losses(self) -> list[dict]:
        if not self.loss_csv.exists():
            return []
        with open(self.loss_csv, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def forget_losses_after(self, step: int):
        """Drop the rows of steps that a resumed run makes again."""
        rows = [row for row in self.read_losses() if int(row["step"]) <= step]
        with replacing(self.loss_csv) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, LOSS_COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
