"""Save and load checkpoints: resume exactly; roll back to the best state."""

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast_object_list
from accelerate.utils.operations import recursively_apply
from safetensors import SafetensorError

from hypernet.data.batch_sampler import EpochBatchSampler
from hypernet.formats.load_save import load, save
from hypernet.formats.webui import save_webui
from hypernet.modeling.hypernetwork import Hypernetwork, constructor_arguments
from hypernet.training.accelerator import print_main
from hypernet.training.divergence_guard import DivergenceGuard
from hypernet.training.ema import EMA
from hypernet.training.run_folder import RunFolder
from hypernet.utils.atomic_files import atomic_write, remove
from hypernet.utils.hashing import write_manifest

PROGRESS = "progress.json"  # place in the data, losses not logged yet, state of the guard
AVERAGE = "average.pt"  # with --ema_decay: the trained weights, since those beside config.json are then the EMA
BEST = "best"  # inside a checkpoint: the best state as of then
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)  # a full disk raises a different one in every library


class Checkpointer:
    """Saves, loads and rolls back weights, optimizer, loss scaler, EMA, place in the data, and the guard.

    No random generators are saved: everything random is a function of seed, epoch and image
    (`hypernet.utils.hashing.derive_seed`).

    Attributes:
        losses: one tensor per step since the last logging.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: RunFolder,
        hypernetwork: Hypernetwork,
        optimizer: AcceleratedOptimizer,
        ema: EMA,
        batches: EpochBatchSampler,
        guard: DivergenceGuard,
        limit: int | None = None,
    ):
        self.accelerator, self.folder, self.limit = accelerator, folder, limit
        self.hypernetwork, self.optimizer, self.ema = hypernetwork, optimizer, ema
        self.batches, self.guard = batches, guard
        self.losses: list[torch.Tensor] = []
        self._good: dict[str, Any] | None = None  # on the CPU: the state to roll back to
        self._written_step: int | None = None  # of the folder `best`
        accelerator.register_save_state_pre_hook(self._before_save)
        accelerator.register_load_state_pre_hook(self._before_load)

    def save(self, step: int) -> bool:
        """Write a checkpoint, and the hypernetwork in both formats. Return whether it worked."""

        def write() -> None:
            self.folder.flush()
            with atomic_write(self.folder.checkpoint_path(step)) as temporary:
                self.accelerator.save_state(temporary)
                if self.guard.best_step is not None:
                    self._write_best()
                    link_folder(self.folder.best, temporary / BEST)
                write_manifest(temporary)
            self.export()
            self.folder.prune(self.limit)

        saved = self._try(step, f"the checkpoint of step {step}", write)
        if saved and self.guard.best_step is None:
            self.remember(step)
        return saved

    def save_best(self, step: int) -> None:
        """Keep the current state as the best so far: in memory, and in the folder `best` with the WebUI's file."""
        self.remember(step)
        self._try(step, f"the best state, of step {step}", self._write_best)

    def export(self) -> None:
        """Write the hypernetwork to the run folder."""
        with self.ema.applied():
            self.folder.export(self.hypernetwork)

    def load(self, checkpoint: Path) -> None:
        """Restore everything from a checkpoint."""
        self.accelerator.load_state(checkpoint)
        if self.guard.best_step is None:
            self.remember(self.hypernetwork.config.step)
            return
        self._good = self._read(checkpoint / BEST)
        if self.accelerator.is_main_process:
            with atomic_write(self.folder.best) as temporary:  # the existing one may be from a later step
                link_folder(checkpoint / BEST, temporary)
        self._written_step = self._good["step"]

    @property
    def good_step(self) -> int:
        """The step of the state to roll back to."""
        return self._require_good()["step"]

    @property
    def has_good_state(self) -> bool:
        """Whether there is a state to roll back to."""
        return self._good is not None

    def remember(self, step: int) -> None:
        """Copy the trained state to CPU memory, to roll back to."""
        trained = {
            "weights": dict(self.hypernetwork.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema.state_dict(),
        }
        good: dict[str, Any] = recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), trained)
        good["step"] = step
        good["scaler"] = self.accelerator.scaler and self.accelerator.scaler.state_dict()
        self._good = good

    def roll_back(self) -> None:
        """Restore weights, optimizer, loss scaler and EMA; the step count and the data order continue."""
        good = self._require_good()
        self.hypernetwork.load_state_dict(good["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(good["optimizer"]))
        self.optimizer.optimizer.zero_grad()
        self.ema.load_state_dict(good["average"])
        if self.accelerator.scaler and good["scaler"]:
            self.accelerator.scaler.load_state_dict(good["scaler"])
        self.losses.clear()

    def _require_good(self) -> dict[str, Any]:
        if self._good is None:
            raise RuntimeError("nothing to roll back to: remember() has not been called")
        return self._good

    def _write_best(self) -> None:
        """Write the remembered state to the folder `best`, unless it is there already."""
        good = self._require_good()
        if self._written_step == good["step"]:
            return
        best = Hypernetwork(**constructor_arguments(self.hypernetwork.config))
        best.load_state_dict(good["weights"])
        best.register_to_config(step=good["step"])
        with atomic_write(self.folder.best) as temporary:
            temporary.mkdir()
            if good["average"]:
                _save_average(best.state_dict(), good["average"], temporary)
                for weight, average in zip(best.parameters(), good["average"]["shadow_params"], strict=True):
                    weight.data.copy_(average)
            save(best, temporary)
            save_webui(best, temporary / self.folder.webui_file.name)
            torch.save(good["optimizer"], temporary / "optimizer.bin")
            if good["scaler"]:
                torch.save(good["scaler"], temporary / "scaler.pt")
            write_manifest(temporary)
        self._written_step = good["step"]

    def _try(self, step: int, what: str, write: Callable[[], None]) -> bool:
        """Let the main process write; return on all processes whether that worked."""
        self.hypernetwork.register_to_config(step=step)
        if self.losses:  # each process has its own
            means = self.accelerator.reduce(torch.stack(self.losses), "mean")
            self.losses[:] = means.unbind()
        self.accelerator.wait_for_everyone()
        problem = None
        if self.accelerator.is_main_process:
            try:
                write()
            except SAVE_ERRORS as error:
                problem = f"{what} could not be saved ({' '.join(str(error).split())[:200]})"
        [problem] = broadcast_object_list([problem])
        if problem:
            print_main(self.accelerator, f"{problem}; earlier checkpoints are intact, and the run continues")
        return problem is None

    def _before_save(self, models: list, weights: list, folder: str) -> None:
        """Save the hypernetwork instead of the frozen UNet and what wraps it."""
        weights.clear()
        with self.ema.applied():
            save(self.hypernetwork, folder)
        if self.ema.average is not None:
            _save_average(self.hypernetwork.state_dict(), self.ema.state_dict(), Path(folder))
        losses = torch.stack(self.losses).tolist() if self.losses else []
        progress = {"batches": self.batches.state_dict(), "losses": losses, "guard": self.guard.state_dict()}
        Path(folder, PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _before_load(self, models: list, folder: str) -> None:
        models.clear()
        saved = self._read(Path(folder))
        self.hypernetwork.load_state_dict(saved["weights"])
        self.hypernetwork.register_to_config(step=saved["step"])
        self.ema.load_state_dict(saved["average"])
        progress = json.loads(Path(folder, PROGRESS).read_text(encoding="utf-8"))
        self.batches.load_state_dict(progress["batches"])
        self.guard.load_state_dict(progress["guard"])
        self.losses[:] = torch.tensor(progress["losses"], device=self.accelerator.device).unbind()

    @staticmethod
    def _read(folder: Path) -> dict[str, Any]:
        """Read the state that `remember` keeps from the files of a checkpoint."""
        saved = load(folder)
        state: dict[str, Any] = {"weights": saved.state_dict(), "average": {}, "step": saved.config.step}
        if (folder / AVERAGE).is_file():
            kept = torch.load(folder / AVERAGE, map_location="cpu", weights_only=True)
            shadow = [parameter.detach() for parameter in saved.parameters()]
            state |= {"weights": kept["weights"], "average": {**kept["average"], "shadow_params": shadow}}
        state["optimizer"] = torch.load(folder / "optimizer.bin", map_location="cpu", weights_only=True)
        scaler = folder / "scaler.pt"
        state["scaler"] = torch.load(scaler, weights_only=True) if scaler.is_file() else None
        return state


def _save_average(weights: dict, state: dict, folder: Path) -> None:
    """Save the part of the EMA's state that the exported weights lack: the trained weights, and its counters."""
    counters = {key: value for key, value in state.items() if key != "shadow_params"}
    torch.save({"weights": weights, "average": counters}, folder / AVERAGE)


def link_folder(source: Path, target: Path) -> None:
    """Replace `target` by hard links to the files of `source`; by copies where the file system has no hard links."""

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copy2(file, to)

    remove(target)
    shutil.copytree(source, target, copy_function=link)
