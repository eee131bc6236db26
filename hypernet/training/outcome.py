"""What a run leaves behind for its user: the loss plot, result.json and the last lines it prints."""

import math
import time
from typing import Any

from hypernet.training.auto_learning_rate import CHOSEN
from hypernet.training.learning_notes import learning_note
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.training.monitor import Monitor
from hypernet.training.preview_scores import Scores
from hypernet.utils.errors import counted
from hypernet.utils.image_grid import save_png

PLOT_SECONDS = 60  # between two updates of loss.png; more if they would take more than PLOT_SHARE of the time
PLOT_SHARE = 0.05


class Outcome:
    """Describes what a run has come to, from the measurements of its monitor."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor, self.folder, self.guard = monitor, monitor.folder, monitor.guard
        self._next_plot = time.monotonic() + PLOT_SECONDS

    def plot(self, now: bool = False) -> bool:
        """Update loss.png, unless that was done a moment ago. Return whether it was due; False in other processes."""
        is_main = self.monitor.accelerator.is_main_process
        if not is_main or not (now or time.monotonic() > self._next_plot):
            return False
        started = time.monotonic()
        tables = (self.folder.losses, self.folder.validation_losses, self.folder.guard_log, self.folder.scores)
        losses, validation_losses, events, scores = (table.rows() for table in tables)
        rollbacks = [int(event["step"]) for event in events if "goes back" in event.get("event", "")]
        with self.monitor.failures.tolerate(f"{self.folder.loss_plot} could not be drawn"):  # matplotlib may be broken
            from hypernet.training.loss_plot import plot_losses  # matplotlib, which nothing else here needs

            plot = plot_losses(losses, str(self.monitor.config.name), validation_losses, rollbacks, scores)
            save_png(plot, self.folder.loss_plot)
        self._next_plot = time.monotonic() + max(PLOT_SECONDS, (time.monotonic() - started) / PLOT_SHARE)
        return True

    @property
    def scores(self) -> Scores:
        """The scores of the exported hypernetwork; empty if nothing was scored."""
        return {} if self.monitor.scores is None else self.monitor.scores.values

    @property
    def guarded(self) -> str:
        """What the divergence guard has done to the exported hypernetwork; empty if nothing."""
        guard, parts = self.guard, []
        if guard.rollbacks:
            parts.append(counted(guard.rollbacks, "rollback"))
        if guard.last_loss == guard.best_loss and guard.best_step not in (None, self.step):
            parts.append(f"the weights are those of step {guard.best_step}, the best")
        return "; ".join(parts)

    @property
    def step(self) -> int:
        """The number of steps that the run has taken."""
        return int(self.monitor.checkpointer.hypernetwork.config.step)

    def result(self) -> dict[str, Any]:
        """Return what result.json says: the step, the exported hypernetwork's losses and scores, and what has failed.

        A loss is None if there is none: no state may have been good enough to be the best.
        """
        monitor, guard = self.monitor, self.guard
        found: dict[str, Any] = {"step": self.step}
        found["guard_returns"] = guard.rollbacks
        if monitor.validation is not None:
            losses = {"val_loss": guard.last_loss, "val_loss_base": monitor.base_loss, "best_val_loss": guard.best_loss}
            found |= {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}
            found["best_step"] = guard.best_step
        found |= self.scores
        if CHOSEN in self.folder.extras:
            found["learning_rate"] = float(learning_rate_schedule(monitor.config).at(0))
        return found | ({"failures": monitor.failures.lines} if monitor.failures.lines else {})

    def summary(self) -> list[str]:
        """Return lines on the scores and losses, and on a run that has learned next to nothing; often none."""
        monitor, guard = self.monitor, self.guard
        lines = []
        scores = self.scores
        if "prompt_fidelity" in scores:
            lines.append(f"  prompt fidelity {scores['prompt_fidelity']:.2f} (1: as without the hypernetwork, 0: gone)")
        if "style_distance" in scores:
            lines.append(
                f"  style distance  {scores['style_distance']:.2f} (1: as without the hypernetwork, 0: as yours)"
            )
        if monitor.validation is not None:
            best = f"the best, {guard.best_loss:.4g} at step {guard.best_step}, is in {self.folder.best}"
            if guard.best_step is None:
                limit = f"--min_prompt_fidelity {guard.min_fidelity:g}"
                best = f"no state has shown the prompts well enough to be the best ({limit})"
            last = f"{guard.last_loss:.4g} with the exported one"
            lines.append(f"  validation loss {monitor.base_loss:.4g} without the hypernetwork, {last}; {best}")
        if self.guarded:
            lines.append(f"  guard           {self.guarded} ({self.folder.guard_log.path})")
        if monitor.change is None:
            monitor.measure_change()
        change = None if guard.rollbacks else monitor.change  # the state that the guard restores has hardly changed
        best_loss = math.nan if guard.best_step is None else guard.best_loss
        note = learning_note(monitor.config, change, monitor.base_loss, best_loss)
        return [*lines, f"note: {note}"] if note else lines
