"""The folder a run writes to: which run it holds, its checkpoints and its tables."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hypernet.config import TrainingConfig
from hypernet.formats.load_save import WEIGHTS_NAME, save_folder
from hypernet.formats.webui import save_webui
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.training.run_identity import PROGRESS, RunIdentity, TrainedWith
from hypernet.training.run_options import BEGUN_BY, other_run, portable_options, read_record
from hypernet.utils.atomic_files import atomic_write, is_unfinished, remove, remove_unfinished
from hypernet.utils.csv_log import CsvLog
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import find_damage
from hypernet.utils.reading import read_json_object

LOCK = "run.lock"
LOSS_COLUMNS = ["step", "epoch", "epoch_step", "loss", "learn_rate"]  # the WebUI's
SCORE_COLUMNS = ["step", "prompt_fidelity", "style_distance", "score"]
GUARD_COLUMNS = ["step", "event", "learning_rate_factor"]
BEST = "best"  # in the folder and in each checkpoint: the state to roll back to


class RunFolder:
    """The paths below `--output_dir`, and operations on the folder as a whole."""

    def __init__(self, config: TrainingConfig):
        self.root = Path(config.output_dir)
        self.options = portable_options(config)
        self.checkpoints = self.root / "checkpoints"
        self.best = self.root / BEST
        self.previews = self.root / "previews"
        self.logs = self.root / "logs"
        self.losses = CsvLog(self.root / "hypernetwork_loss.csv", LOSS_COLUMNS)
        self.validation_losses = CsvLog(self.root / "validation_loss.csv", [])  # columns come with the first row
        self.scores = CsvLog(self.root / "scores.csv", SCORE_COLUMNS)
        self.metrics = CsvLog(self.root / "metrics.csv", [])
        self.guard_log = CsvLog(self.root / "guard.csv", GUARD_COLUMNS)
        self.loss_plot = self.root / "loss.png"
        self.learning_rate_plot = self.root / "learning_rate.png"
        self.page = self.root / "run.html"
        self.before_after = self.previews / "before_after.png"
        self.webui_file = self.root / f"{config.name}.pt"
        self.card = self.root / "README.md"
        self.wandb_id = self.root / "wandb_id"
        self.validation_images = self.root / "held_out.json"
        self.result = self.root / "result.json"  # written when the run has ended
        self.extras: dict[str, Any] = {}  # what run.json says besides the options
        self.identity = RunIdentity(self.options, read_record(self.root))
        self._run_file = self.root / "run.json"
        self._exported = [self.root / "config.json", self.root / WEIGHTS_NAME, self.webui_file]
        self._tables = (self.losses, self.validation_losses, self.scores, self.metrics, self.guard_log)
        files = [
            self.loss_plot,
            self.learning_rate_plot,
            self.page,
            self.card,
            self.wandb_id,
            self.validation_images,
            self.result,
        ]
        files += [table.path for table in self._tables]
        # all but run.json, which is replaced last so that the folder always belongs to some run
        self._written = [self.checkpoints, self.best, self.previews, self.logs, self.root / "wandb"]
        self._written += [*self._exported, *files]

    def check(self, overwrite: bool) -> None:
        """Check that the folder is new or empty, or holds this same run, as far as the options tell.

        Raises:
            UserError: if it holds another run (naming the options that differ) or other files.
        """
        if self.root.exists() and not self.root.is_dir():
            raise UserError(f"--output_dir {self.root}: it is a file; name a folder")
        existing = next(path for path in (self.root, *self.root.resolve().parents) if path.exists())
        if not os.access(existing, os.W_OK):
            raise UserError(f"--output_dir {self.root}: {existing} is not writable")
        if not self.root.exists() or all(is_unfinished(path) or path.name == LOCK for path in self.root.iterdir()):
            return
        if not self.holds_run():
            raise UserError(f"--output_dir {self.root}: it is not empty and holds no run; name a new folder")
        if not overwrite and (differing := other_run(self.identity.record, self.options)):
            raise self._another_run(differing)

    def check_contents(self, contents: dict[str, str], batches: str = "", digests: Sequence[str] = ()) -> str | None:
        """Check that the contents are those the run in the folder was trained with; see `RunIdentity.compare`.

        Returns:
            A note on changes that are allowed, or None.

        Raises:
            UserError: if it is another run.
        """
        differing, note = self.identity.compare(contents, batches, digests)
        if differing:
            raise self._another_run(differing)
        return note

    def _another_run(self, differing: list[str]) -> UserError:
        newest = "".join(map(str, self.checkpoint_paths()[-1:]))
        keep = f", with --init_from {newest} to continue training from there" if newest else ""
        replace = "delete this one" if self.options["overwrite"] else "add --overwrite to replace this one"
        problem = f"it holds another run; differing: {', '.join(differing[:4])}"
        return UserError(f"--output_dir {self.root}: {problem}; name a new folder{keep}; or {replace}")

    def holds_run(self) -> bool:
        """Whether the folder holds a run, this one or another."""
        return self._run_file.is_file()

    def lock(self) -> None:
        """Keep other runs out of the folder until this process ends.

        Raises:
            UserError: if another process is training in it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = FileLock(self.root / LOCK, timeout=0, is_singleton=True)  # released with this object
            self._lock.acquire()
        except Timeout:
            problem = "another process is training in it right now; wait for it, or name another folder"
            raise UserError(f"--output_dir {self.root}: {problem}") from None
        except (NotImplementedError, OSError):
            pass  # a file system without locks

    def create(self, overwrite: bool, begun_by: dict[str, Any] | None = None) -> None:
        """Make the folder, and write the options of a new run into it; with `overwrite` delete the earlier run first.

        Args:
            begun_by: the options of the command whose --overwrite began the run, if one did.
        """
        if overwrite:
            for path in self._written:
                remove(path)
        if overwrite or not self.holds_run():
            self.record(begun_by)  # before any other file: without it the folder belongs to no run
        for folder in (self.root, self.checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
            remove_unfinished(folder)
        with contextlib.suppress(OSError):  # it may be open in another program; this run replaces it at its end
            remove(self.result)
        with contextlib.suppress(OSError):  # without this folder, the run has no previews, and says so
            self.previews.mkdir(exist_ok=True)
            remove_unfinished(self.previews)

    def record(self, begun_by: dict[str, Any] | None) -> None:
        """Record the options; the one-time requests of the command then count as carried out."""
        if read_record(self.root) != (content := {**self.options, BEGUN_BY: begun_by, **self.extras}):
            write_json(self._run_file, content)

    def read_validation_images(self) -> Collection[str]:
        """Return the SHA-256 of the images this run has set aside for validation so far."""
        if self.identity.before is not None and self.identity.before.validation_images:
            return self.identity.before.validation_images
        try:
            return read_json_object(self.validation_images)  # for an older version's checkpoint, or without one
        except (OSError, ValueError):
            return []

    def write_validation_images(self, names: dict[str, str]) -> None:
        """Write the images set aside for validation: SHA-256 -> name. Checkpoints hold them, too."""
        self.identity.validation_images = sorted(names)
        write_json(self.validation_images, names)

    def write_result(self, result: dict) -> None:
        """Write how the run has ended."""
        write_json(self.result, result)

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of a step belongs."""
        return self.checkpoints / f"step-{step:06d}"

    def checkpoint_paths(self) -> list[Path]:
        """Return all checkpoints, intact or not, oldest step first."""
        found = [path for path in self.checkpoints.glob("step-*") if path.name.removeprefix("step-").isdigit()]
        return sorted(found, key=_step)

    def find_checkpoint(self, wanted: str) -> tuple[Path | None, list[str]]:
        """Find the checkpoint to resume from: "latest", "none", or the name or path of one of this run's.

        Returns:
            The checkpoint, and for "latest" a line for each newer one that is damaged.

        Raises:
            UserError: if the one named does not exist or is damaged, or if all are damaged.
        """
        if wanted == "none":
            return None, []
        path, notes = self._find_checkpoint(wanted, self.checkpoint_paths())
        self.identity.before = None if path is None else TrainedWith.read(path, self.identity.record)
        return path, notes

    def _find_checkpoint(self, wanted: str, paths: list[Path]) -> tuple[Path | None, list[str]]:
        if wanted == "latest":
            return self._latest_intact(paths)
        for path in paths:
            if wanted == path.name or Path(wanted).resolve() == path.resolve():
                if problem := find_checkpoint_damage(path):
                    raise UserError(f"--resume_from_checkpoint {wanted}: {problem}; name another")
                return path, []
        found = ", ".join(path.name for path in paths) or "none"
        raise UserError(f"--resume_from_checkpoint {wanted}: {self.checkpoints} has no such checkpoint; it has {found}")

    def _latest_intact(self, paths: list[Path]) -> tuple[Path | None, list[str]]:
        notes: list[str] = []
        for path in reversed(paths):
            problem = find_checkpoint_damage(path)
            if problem is None:
                return path, notes
            notes.append(f"{path} is not used: {problem}")
        if paths:
            problem = f"none of its {len(paths)} checkpoints is intact ({notes[0]})"
            hint = "--resume_from_checkpoint none starts over and keeps them under other names"
            raise UserError(f"--output_dir {self.root}: {problem}; {hint}")
        return None, notes

    def roll_back_to(self, step: int) -> list[str]:
        """Drop table rows after `step` and rename later checkpoints; return a line for each, and for damaged tables."""
        lines = [note for table in self._tables if (note := table.roll_back_to(step))]
        later = [path for path in self.checkpoint_paths() if _step(path) > step]
        for path in later:
            name = f"{'damaged' if find_checkpoint_damage(path) else 'abandoned'}-{path.name}"
            names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
            renamed = next(other for other in map(path.with_name, names) if not other.exists())
            path.rename(renamed)
            lines.append(f"{path.name} is now {renamed.name}")
        for path in self.previews.glob("step-*-discarded.png"):  # other previews are overwritten
            digits = path.name.split("-")[1]
            if digits.isdecimal() and int(digits) > step:
                path.unlink(missing_ok=True)
        if later or step == 0:
            remove(self.wandb_id)  # W&B accepts no rows for steps that a run has passed
        return lines

    def discarded(self, step: int) -> Path:
        """Return the path of the previews of a state that the divergence guard has discarded after `step` steps."""
        return self.previews / f"step-{step:06d}-discarded.png"

    def prune(self, limit: int | None) -> None:
        """Keep only the newest `limit` checkpoints, and as many of the abandoned ones; delete the rest."""
        if limit:
            abandoned = sorted(self.checkpoints.glob("abandoned-step-*"), key=lambda path: path.stat().st_mtime)
            for path in [*self.checkpoint_paths()[:-limit], *abandoned[:-limit]]:
                shutil.rmtree(path)

    def flush(self) -> None:
        """Flush the tables to disk; a checkpoint relies on their rows, and holds those that could not be written."""
        for table in self._tables:
            table.flush()

    def table_states(self) -> dict[str, dict[str, Any]]:
        """Return what the tables could not write yet, by file name; empty if nothing failed."""
        return {table.path.name: state for table in self._tables if (state := table.state_dict())}

    def load_table_states(self, states: dict[str, dict[str, Any]]) -> None:
        """Restore the result of `table_states`."""
        for table in self._tables:
            table.load_state_dict(states.get(table.path.name, {}))

    def finish_tables(self) -> list[str]:
        """Try once more to write all rows; return a line for each table where that fails."""
        return [note for table in self._tables if (note := table.finish())]

    def export(self, hypernetwork: Hypernetwork) -> None:
        """Write the hypernetwork: config.json and safetensors in the root, the WebUI's file beside them."""
        save_folder(hypernetwork, self.root)
        save_webui(hypernetwork, self.webui_file)

    def exported_files(self) -> list[Path]:
        """Return the files of the hypernetwork."""
        return [path for path in self._exported if path.is_file()]


def find_checkpoint_damage(checkpoint: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if all that a resume needs is intact.

    A resume does not need `best`, and nothing uses the random states that Accelerate saves.
    """
    needed = ["config.json", WEIGHTS_NAME, "optimizer.bin", PROGRESS]
    unused = BEST, "random_states_"
    return find_damage(checkpoint, lambda name: not name.startswith(unused), needed)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))
