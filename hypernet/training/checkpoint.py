"""Save and load checkpoints: resume exactly; roll back to the best state."""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator
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
from hypernet.formats.trained_folder import read_trained_config
from hypernet.formats.webui import save_webui
from hypernet.modeling.hypernetwork import Hypernetwork, constructor_arguments
from hypernet.training.accelerator import print_main
from hypernet.training.divergence_guard import DivergenceGuard
from hypernet.training.ema import EMA
from hypernet.training.run_folder import BEST, RunFolder, find_checkpoint_damage
from hypernet.training.run_identity import PROGRESS
from hypernet.utils.atomic_files import atomic_write, link_folder
from hypernet.utils.errors import reason
from hypernet.utils.hashing import find_damage, write_manifest

SCALER = "scaler.pt"
AVERAGE = "average.pt"  # with --ema_decay: the trained weights, since those beside config.json are then the EMA
SAVE_ERRORS = (OSError, RuntimeError, SafetensorError)  # a full disk raises a different one in every library


class Checkpointer:
    """Saves, loads and rolls back weights, optimizer, loss scaler, EMA, place in the data, and the guard.

    No random generators are saved: everything random is a function of seed, epoch and image
    (`hypernet.utils.hashing.derive_seed`).

    Attributes:
        losses: one tensor per batch since the last logging.
        grad_norms: one per step.
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
        self.grad_norms: list[torch.Tensor] = []
        self._good: dict[str, Any] | None = None  # on the CPU: the state to roll back to
        self._written_step: int | None = None  # of the folder `best`
        accelerator.register_save_state_pre_hook(self._before_save)
        accelerator.register_load_state_pre_hook(self._before_load)

    def save(self, step: int) -> str | None:
        """Write a checkpoint, then the hypernetwork in both formats.

        Returns:
            None on success; else a line on what is saved and what the same command would do if the run ended here.
        """

        def write() -> None:
            self.folder.flush()
            with atomic_write(self.folder.checkpoint_path(step)) as temporary:
                self.accelerator.save_state(temporary)
                if self.guard.best_step is not None:
                    self._write_best()
                    link_folder(self.folder.best, temporary / BEST)
                write_manifest(temporary)

        self._average_losses()
        if self._try(step, f"the checkpoint of step {step} could not be saved", write):
            newest = [path.name for path in self.folder.checkpoint_paths()][-1:]
            then = f"resumes from {newest[0]}" if newest else "starts over, as there is no checkpoint yet"
            return f"step {step} is not saved; the same command {then}"
        if self.guard.best_step is None:
            self.remember(step)
        if self._try(step, f"the hypernetwork of step {step} could not be saved", self.export):
            return f"the checkpoint of step {step} is saved, {self.folder.webui_file} is not; the same command saves it"
        self._try(step, "old checkpoints could not be deleted", lambda: self.folder.prune(self.limit))
        return None

    def save_best(self, step: int) -> None:
        """Keep the current state as the best so far: in memory, and in the folder `best` with the WebUI's file."""
        self.remember(step)
        self._average_losses()
        self._try(step, f"the best state of step {step} could not be saved", self._write_best)

    def export(self) -> None:
        """Write the hypernetwork to the run folder."""
        with self.ema.applied():
            self.folder.export(self.hypernetwork)

    def load(self, checkpoint: Path) -> None:
        """Restore everything from a checkpoint; if its best state is damaged, use another copy or restart the search."""
        scaler = self.accelerator.scaler
        if not (checkpoint / SCALER).is_file():
            self.accelerator.scaler = None  # the checkpoint is of another precision, so the scaler starts from scratch
        self.accelerator.load_state(checkpoint)
        self.accelerator.scaler = scaler
        self.accelerator.step = 0  # of gradient accumulation; a checkpoint follows an update
        if self.guard.best_step is not None:
            self._load_best(checkpoint)
        if self.guard.best_step is None:
            self.remember(self.hypernetwork.config.step)

    def _load_best(self, checkpoint: Path) -> None:
        """Restore the state to roll back to, and the folder `best`, which may be from a later step."""
        damage = find_damage(checkpoint / BEST)
        if damage is None:
            self._good = self._read(checkpoint / BEST)
            if self.accelerator.is_main_process:
                with atomic_write(self.folder.best) as temporary:
                    link_folder(checkpoint / BEST, temporary)
            self._written_step = self._good["step"]
            return
        source = self._find_best_copy(checkpoint)
        if source is None:
            self.guard.forget_best()
            what = "the search for the best state starts over"
        else:
            self._good = self._read(source)
            what = "its other files suffice" if source == checkpoint / BEST else f"it is restored from {source}"
        print_main(self.accelerator, f"note: {checkpoint / BEST}: {damage}; {what}")
        if source is not None and self.accelerator.is_main_process:
            self._write_best()

    def _find_best_copy(self, checkpoint: Path) -> Path | None:
        """Return a folder with an intact copy of the best state, or None.

        Files in the WebUI's format are not needed. On a file system without hard links, each checkpoint has its own
        copy. The checkpoint of the best step holds the same state.
        """
        for path in [checkpoint, *self.folder.checkpoint_paths()]:
            copy = path / BEST
            if find_damage(copy, lambda name: not name.endswith(".pt") or name in (AVERAGE, SCALER)) is None:
                if (read_trained_config(copy) or {}).get("step") == self.guard.best_step:
                    return copy
        own = self.folder.checkpoint_path(self.guard.best_step or 0)
        return own if find_checkpoint_damage(own) is None else None

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
        self._good = self._copy_state(step)

    def roll_back(self) -> None:
        """Restore weights, optimizer, loss scaler and EMA; the step count and the data order continue."""
        self._restore(self._require_good())
        self.losses.clear()
        self.grad_norms.clear()

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """A context after which weights, optimizer, loss scaler and EMA are what they were before."""
        state = self._copy_state(self.hypernetwork.config.step)
        try:
            yield
        finally:
            self._restore(state)

    def _copy_state(self, step: int) -> dict[str, Any]:
        """Return a copy of the trained state in CPU memory."""
        trained = {
            "weights": dict(self.hypernetwork.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "average": self.ema.state_dict(),
        }
        state: dict[str, Any] = recursively_apply(lambda tensor: tensor.detach().to("cpu", copy=True), trained)
        state["step"] = step
        state["scaler"] = self.accelerator.scaler and self.accelerator.scaler.state_dict()
        return state

    def _restore(self, state: dict[str, Any]) -> None:
        self.hypernetwork.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.optimizer.optimizer.zero_grad()
        self.ema.load_state_dict(state["average"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])

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
                torch.save(good["scaler"], temporary / SCALER)
            write_manifest(temporary)
        self._written_step = good["step"]

    def _average_losses(self) -> None:
        """Average the losses over the processes; only the main process saves them."""
        if self.losses:
            self.losses[:] = self.accelerator.reduce(torch.stack(self.losses), "mean").unbind()

    def _try(self, step: int, what: str, write: Callable[[], None]) -> str | None:
        """Let the main process write; return on all processes the problem that has been printed, or None."""
        self.hypernetwork.register_to_config(step=step)
        self.accelerator.wait_for_everyone()
        problem = None
        if self.accelerator.is_main_process:
            try:
                write()
            except SAVE_ERRORS as error:
                problem = f"{what} ({reason(error)})"
        [problem] = broadcast_object_list([problem])
        if problem:
            print_main(self.accelerator, f"{problem}; what was saved before is intact")
        return problem

    def _before_save(self, models: list, weights: list, folder: str) -> None:
        """Save the hypernetwork instead of the frozen UNet and what wraps it."""
        weights.clear()
        with self.ema.applied():
            save(self.hypernetwork, folder)
        if self.ema.average is not None:
            _save_average(self.hypernetwork.state_dict(), self.ema.state_dict(), Path(folder))
        losses = torch.stack(self.losses).tolist() if self.losses else []
        norms = torch.stack(self.grad_norms).tolist() if self.grad_norms else []
        progress = {"batches": self.batches.state_dict(), "losses": losses, "grad_norms": norms}
        progress |= {"guard": self.guard.state_dict(), "trained_with": self.folder.identity.state_dict()}
        if unwritten := self.folder.table_states():
            progress["tables"] = unwritten
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
        if self.accelerator.is_main_process:
            self.folder.load_table_states(progress.get("tables", {}))
        for values, name in ((self.losses, "losses"), (self.grad_norms, "grad_norms")):
            values[:] = torch.tensor(progress.get(name, []), device=self.accelerator.device).unbind()

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
        scaler = folder / SCALER
        state["scaler"] = torch.load(scaler, weights_only=True) if scaler.is_file() else None
        return state


def _save_average(weights: dict, state: dict, folder: Path) -> None:
    """Save the part of the EMA's state that the exported weights lack: the trained weights, and its counters."""
    counters = {key: value for key, value in state.items() if key != "shadow_params"}
    torch.save({"weights": weights, "average": counters}, folder / AVERAGE)
