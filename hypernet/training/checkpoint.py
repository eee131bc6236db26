"""What a run needs to go on exactly where it was; and to go back to where it was good."""

import copy
import json
import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from accelerate.utils.operations import recursively_apply
from safetensors import SafetensorError

import hypernet
from hypernet.data.dataset import EpochBatches
from hypernet.utils.errors import UserError
from hypernet.training.divergence_guard import Guard
from hypernet.utils.manifest import write_manifest
from hypernet.modeling.hypernetwork import constructor_arguments
from hypernet.training.run_folder import OutputFolder
from hypernet.utils.atomic_files import remove, replacing
from hypernet.cli.script import say
from hypernet.training.ema import WeightAverage

PROGRESS = "progress.json"  # the place among the batches, losses that are not logged yet, what the guard has seen
AVERAGE = "average.pt"  # with --ema_decay, the trained weights; those beside config.json are the average
BEST = "best"  # within a state: the best one as it was then
CANNOT_SAVE = (OSError, RuntimeError, SafetensorError)  # a full disk is another kind of error in every library


class TrainingState:
    """Saves, loads and takes back: weights, optimizer, loss scaler, average, place in the data, the guard's memory.

    There are no random generators to save: whatever is drawn follows from seed, epoch and image (`hypernet.utils.seeds`).
    `losses` are those of the steps since the last logging, one tensor each.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        output: OutputFolder,
        config,
        hypernetwork,
        optimizer,
        average: WeightAverage,
        batches: EpochBatches,
        guard: Guard,
    ):
        self.accelerator, self.output, self.config = accelerator, output, config
        self.hypernetwork, self.optimizer, self.average = hypernetwork, optimizer, average
        self.batches, self.guard, self.losses = batches, guard, []
        self._good = None  # on the CPU: what to go back to
        self._written_step = None  # of the folder `best`
        accelerator.register_save_state_pre_hook(self._before_save)
        accelerator.register_load_state_pre_hook(self._before_load)

    def save(self, step: int) -> bool:
        """Write the training state, and beside it the hypernetwork to use, in our format and the WebUI's.

        Returns whether it worked.

        Raises:
            UserError: if it did not, and the run is to stop then.
        """

        def write():
            self.output.flush()
            with replacing(self.output.checkpoint(step)) as temporary:
                self.accelerator.save_state(temporary)
                if self.guard.best_step is not None:
                    self._write_best()
                    link_folder(self.output.best, temporary / BEST)
                write_manifest(temporary)
            self.export()
            self.output.prune(self.config.checkpoints_total_limit)

        saved = self._try(step, f"the training state of step {step}", write)
        if saved and self.guard.best_step is None:
            self.remember(step)
        return saved

    def save_best(self, step: int):
        """Keep this state as the best so far: in memory, and in the folder `best`, with the WebUI's file."""
        self.remember(step)
        self._try(step, f"the best state, of step {step}", self._write_best)

    def export(self):
        """The hypernetwork to use, in the output folder."""
        with self.average.applied():
            self.output.export(self.hypernetwork)

    def load(self, folder: Path):
        """Go on from a training state."""
        self.accelerator.load_state(folder)
        if self.guard.best_step is None:
            self.remember(self.hypernetwork.config.step)
            return
        self._good = self._read(folder / BEST)
        if self.accelerator.is_main_process:
            with replacing(self.output.best) as temporary:  # the one there may be of a later step
                link_folder(folder / BEST, temporary)
        self._written_step = self._good["step"]

    @property
    def good_step(self) -> int:
        """The step of the state to go back to."""
        return self._good["step"]

    @property
    def remembers(self) -> bool:
        """Whether there is a state to go back to."""
        return self._good is not None

    def remember(self, step: int):
        """Keep what trains in memory, to go back to."""
        self._good = recursively_apply(
            lambda tensor: tensor.detach().to("cpu", copy=True),
            {
                "weights": dict(self.hypernetwork.state_dict()),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
            },
        )
        self._good["step"] = step
        self._good["scaler"] = self.accelerator.scaler and self.accelerator.scaler.state_dict()

    def go_back(self):
        """Weights, optimizer, loss scaler and average become those that were remembered; steps and data go on."""
        self.hypernetwork.load_state_dict(self._good["weights"])
        self.optimizer.load_state_dict(copy.deepcopy(self._good["optimizer"]))
        self.optimizer.optimizer.zero_grad()
        self.average.load_state_dict(self._good["average"])
        if self.accelerator.scaler and self._good["scaler"]:
            self.accelerator.scaler.load_state_dict(self._good["scaler"])
        self.losses.clear()

    def _write_best(self):
        """Write what is remembered to the folder `best`, unless that could be done before."""
        good = self._good
        if self._written_step == good["step"]:
            return
        best = hypernet.Hypernetwork(**constructor_arguments(self.hypernetwork.config))
        best.load_state_dict(good["weights"])
        best.register_to_config(step=good["step"])
        with replacing(self.output.best) as temporary:
            temporary.mkdir()
            if good["average"]:
                self._save_average(best.state_dict(), good["average"], temporary)
                for weight, average in zip(best.parameters(), good["average"]["shadow_params"], strict=True):
                    weight.data.copy_(average)
            hypernet.save(best, temporary)
            hypernet.save_webui(best, temporary / self.output.webui_file.name)
            torch.save(good["optimizer"], temporary / "optimizer.bin")
            if good["scaler"]:
                torch.save(good["scaler"], temporary / "scaler.pt")
            write_manifest(temporary)
        self._written_step = good["step"]

    @staticmethod
    def _save_average(weights: dict, state: dict, folder: Path):
        """What of the average's state is not in the exported weights: the trained ones, and its counters."""
        counters = {key: value for key, value in state.items() if key != "shadow_params"}
        torch.save({"weights": weights, "average": counters}, folder / AVERAGE)

    def _try(self, step, what, write):
        """Let the main process write; all learn whether it could."""
        self.hypernetwork.register_to_config(step=step)
        if self.losses:  # of several processes each has its own
            means = self.accelerator.reduce(torch.stack(self.losses), "mean")
            self.losses[:] = means.unbind()
        self.accelerator.wait_for_everyone()
        problem = None
        if self.accelerator.is_main_process:
            try:
                write()
            except CANNOT_SAVE as error:
                problem = f"{what} could not be saved ({' '.join(str(error).split())[:200]})"
        [problem] = broadcast_object_list([problem])
        if problem and self.config.on_save_error == "stop":
            raise UserError(f"{problem}; what was saved before is whole; the same command goes on from there")
        if problem:
            say(self.accelerator, f"{problem}; what was saved before is whole, and the run goes on")
        return problem is None

    def _before_save(self, models, weights, folder):
        """Instead of the frozen UNet and what is around it, save the hypernetwork as it is loaded everywhere."""
        weights.clear()
        with self.average.applied():
            hypernet.save(self.hypernetwork, folder)
        if self.average.ema is not None:
            self._save_average(self.hypernetwork.state_dict(), self.average.state_dict(), Path(folder))
        losses = torch.stack(self.losses).tolist() if self.losses else []
        progress = {"batches": self.batches.state_dict(), "losses": losses, "guard": self.guard.state_dict()}
        Path(folder, PROGRESS).write_text(json.dumps(progress), encoding="utf-8")

    def _before_load(self, models, folder):
        models.clear()
        saved = self._read(Path(folder))
        self.hypernetwork.load_state_dict(saved["weights"])
        self.hypernetwork.register_to_config(step=saved["step"])
        self.average.load_state_dict(saved["average"])
        progress = json.loads(Path(folder, PROGRESS).read_text(encoding="utf-8"))
        self.batches.load_state_dict(progress["batches"])
        self.guard.load_state_dict(progress["guard"])
        self.losses[:] = torch.tensor(progress["losses"], device=self.accelerator.device).unbind()

    def _read(self, folder: Path) -> dict:
        """What `remember` keeps, from a state's files."""
        saved = hypernet.load(folder)
        state = {"weights": saved.state_dict(), "average": {}, "step": saved.config.step}
        if (folder / AVERAGE).is_file():
            kept = torch.load(folder / AVERAGE, map_location="cpu", weights_only=True)
            shadow = [parameter.detach() for parameter in saved.parameters()]
            state |= {"weights": kept["weights"], "average": {**kept["average"], "shadow_params": shadow}}
        state["optimizer"] = torch.load(folder / "optimizer.bin", map_location="cpu", weights_only=True)
        scaler = folder / "scaler.pt"
        state["scaler"] = torch.load(scaler, weights_only=True) if scaler.is_file() else None
        return state


def link_folder(source: Path, target: Path):
    """The same files under another name; copies, where the file system has no hard links."""

    def link(file, to):
        try:
            os.link(file, to)
        except OSError:
            shutil.copy2(file, to)

    remove(target)
    shutil.copytree(source, target, copy_function=link)
