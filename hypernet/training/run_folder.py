"""The output folder of a run: whose it is, its checkpoints, its tables."""

import dataclasses
import itertools
import json
import os
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from hypernet.config import TrainingConfig
from hypernet.utils.errors import UserError
from hypernet.formats.load_save import WEIGHTS_NAME, save_folder
from hypernet.utils.manifest import damage
from hypernet.utils.atomic_files import is_unfinished, remove, remove_unfinished, replacing
from hypernet.utils.csv_log import Table
from hypernet.formats.webui import save_webui

LOCK = "run.lock"
LOSS_COLUMNS = ["step", "epoch", "epoch_step", "loss", "learn_rate"]  # the WebUI's
GUARD_COLUMNS = ["step", "event", "learning_rate_factor"]


class OutputFolder:
    """Paths below `output_dir`, and the few things that are done with them."""

    def __init__(self, config: TrainingConfig):
        self.root = Path(config.output_dir)
        self.identity = config.run_identity()  # the options that must stay
        self.options = config.portable_options()
        self.checkpoints = self.root / "checkpoints"
        self.best = self.root / "best"
        self.previews = self.root / "previews"
        self.logs = self.root / "logs"
        self.losses = Table(self.root / "hypernetwork_loss.csv", LOSS_COLUMNS)
        self.val_losses = Table(self.root / "validation_loss.csv", [])  # columns: with the first values
        self.metrics = Table(self.root / "metrics.csv", [])
        self.guard_log = Table(self.root / "guard.csv", GUARD_COLUMNS)
        self.loss_plot = self.root / "loss.png"
        self.before_after = self.previews / "before_after.png"
        self.webui_file = self.root / f"{config.name}.pt"
        self.card = self.root / "README.md"
        self.wandb_id = self.root / "wandb_id"
        self.held_out = self.root / "held_out.json"
        self.result = self.root / "result.json"  # of a run that has come to its end
        self._run_file = self.root / "run.json"
        folders = [self.checkpoints, self.best, self.previews, self.logs, self.root / "wandb"]
        weights = [self.root / "config.json", self.root / WEIGHTS_NAME, self.webui_file]
        self._to_use = weights
        self._tables = (self.losses, self.val_losses, self.metrics, self.guard_log)
        files = [self.loss_plot, self.card, self.wandb_id, self.held_out, self.result]
        files += [table.path for table in self._tables]
        self._written = [*folders, *weights, *files]  # (run.json is replaced, so that the folder is always somebody's)
        self.changed: list[str] = []  # options of the run in the folder that are others now

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
        if not self.root.exists() or all(is_unfinished(path) or path.name == LOCK for path in self.root.iterdir()):
            return []
        if not self.is_begun():
            raise UserError(f"--output_dir {self.root}: it is not empty and holds no run; name a new folder")
        if overwrite:
            return []
        try:
            other = json.loads(self._run_file.read_text(encoding="utf-8"))
        except ValueError:
            other = {}
        defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
        other = {**defaults, **other}  # an option that the other run did not know yet had its default
        self.changed = [key for key, value in self.options.items() if other[key] != value]
        differing = [
            f"{key} (was {other[key]}, now {self.options[key]})" for key in self.changed if key in self.identity
        ]
        if differing:
            problem = f"it holds another run; differing: {', '.join(differing[:4])}"
            raise UserError(f"--output_dir {self.root}: {problem}; name a new folder, or add --overwrite")
        silent = {"output_dir", "overwrite", "resume_from_checkpoint"}
        return [f"--{key} was {other[key]}, is now {self.options[key]}" for key in self.changed if key not in silent]

    def is_begun(self) -> bool:
        """Whether the folder holds a run, this one or another."""
        return self._run_file.is_file()

    def lock(self):
        """Keep other runs out of the folder until this process ends.

        Raises:
            UserError: if another one is at work in it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(self.root / LOCK, timeout=0, is_singleton=True)  # it is let go with this object
            self._lock.acquire()
        except Timeout:
            problem = "another process is training in it at this moment; wait for it, or name another folder"
            raise UserError(f"--output_dir {self.root}: {problem}") from None
        except (NotImplementedError, OSError):
            pass  # a file system without locks

    def create(self, overwrite: bool):
        """Make the folder, after deleting the earlier run in it if `overwrite`, and sign it with this run's options."""
        if overwrite:
            for path in self._written:
                remove(path)
        # before any other file: without it the folder is taken for another's
        self._write_json(self._run_file, self.options)
        remove(self.result)
        for folder in (self.root, self.checkpoints, self.previews):
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)

    def read_held_out(self) -> dict[str, str]:
        """The images that this run has held out so far: sha256 -> name."""
        try:
            return json.loads(self.held_out.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_held_out(self, names: dict[str, str]):
        self._write_json(self.held_out, names)

    def write_result(self, result: dict):
        """Say how the run has ended; who compares runs reads it."""
        self._write_json(self.result, result)

    @staticmethod
    def _write_json(path: Path, content: dict):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:06d}"

    def states(self) -> list[Path]:
        """Training states, whole or not, oldest step first."""
        found = [path for path in self.checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
        return sorted(found, key=_step)

    def find_state(self, wanted: str) -> tuple[Path | None, list[str]]:
        """The training state to go on from: "latest", "none", or the name or path of one of this run's.

        Returns:
            The newest whole one, if the latest is wanted, and a line for each newer one that is damaged.

        Raises:
            UserError: if the one that is named does not exist, or is damaged; if all are damaged.
        """
        states, notes = self.states(), []
        if wanted == "none":
            return None, notes
        if wanted == "latest":
            for state in reversed(states):
                problem = damage(state)
                if problem is None:
                    return state, notes
                notes.append(f"{state} is not used: {problem}")
            if states:
                problem = f"none of its {len(states)} training states is whole ({notes[0]})"
                hint = "--resume_from_checkpoint none begins again and keeps them under another name"
                raise UserError(f"--output_dir {self.root}: {problem}; {hint}")
            return None, notes
        for state in states:
            if wanted == state.name or Path(wanted).resolve() == state.resolve():
                if problem := damage(state):
                    raise UserError(f"--resume_from_checkpoint {wanted}: {problem}; name another")
                return state, notes
        found = ", ".join(path.name for path in states) or "none"
        problem = f"{self.checkpoints} has no such training state; it has {found}"
        raise UserError(f"--resume_from_checkpoint {wanted}: {problem}")

    def go_back_to(self, step: int) -> list[str]:
        """Forget what lies after `step`: the rows are dropped, later states are kept under another name, which is told."""
        for table in self._tables:
            table.go_back_to(step)
        later = [state for state in self.states() if _step(state) > step]
        lines = []
        for state in later:
            name = f"{'damaged' if damage(state) else 'abandoned'}-{state.name}"
            names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            aside = next(path for path in map(state.with_name, names) if not path.exists())
            state.rename(aside)
            lines.append(f"{state.name} is now {aside.name}")
        if later or step == 0:
            remove(self.wandb_id)  # W&B takes no rows of steps that a run has passed
        return lines

    def prune(self, limit: int | None):
        """Delete all but the newest states; of abandoned ones, too, as many are kept."""
        if limit:
            abandoned = sorted(self.checkpoints.glob("abandoned-step-*"), key=lambda path: path.stat().st_mtime)
            for path in [*self.states()[:-limit], *abandoned[:-limit]]:
                shutil.rmtree(path)

    def flush(self):
        """Have the tables on the disk before a state that counts on them."""
        for table in self._tables:
            table.flush()

    def export(self, hypernetwork):
        """The hypernetwork to use: config.json and safetensors in the root, and the WebUI's file beside them."""
        save_folder(hypernetwork, self.root)
        save_webui(hypernetwork, self.webui_file)

    def to_use(self) -> list[Path]:
        """The files of the hypernetwork."""
        return [path for path in self._to_use if path.is_file()]

    def save_picture(self, image, path: Path):
        """Write a picture whole or not at all; a full disk costs no more than the picture."""
        try:
            with replacing(path) as temporary:
                image.save(temporary, format="PNG")
        except OSError as error:
            print(f"{path} could not be saved ({error.strerror or error})")


def _step(state: Path) -> int:
    return int(state.name.removeprefix("step-"))
