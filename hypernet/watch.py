"""The watch over a run: measure, write down, judge, and do what the guard says."""

import time

import torch

from hypernet.effect import Effect
from hypernet.errors import UserError
from hypernet.held_out import HeldOutLoss
from hypernet.output import OutputFolder
from hypernet.plot import plot_losses
from hypernet.script import say
from hypernet.trackers import peak_memory
from hypernet.training_state import TrainingState

LEAST_LOSS_SCALE = 2**-10  # below it every step overflows, whatever the scale
PLOT_SECONDS = 60  # loss.png is drawn so often, and at the end


class Watch:
    """What is measured beside the training itself.

    The methods that judge return why the run has died, or None; then `go_back` is the remedy. All processes call them.
    """

    def __init__(self, accelerator, config, output: OutputFolder, state: TrainingState, held_out: HeldOutLoss | None):
        self.accelerator, self.config, self.output = accelerator, config, output
        self.state, self.held_out, self.guard = state, held_out, state.guard
        self.base = self.last = None  # held-out losses: without the hypernetwork, and the last one
        self.effect: Effect | None = None
        self.grad_norms, self.images, self.seconds = [], 0, 0.0
        self._plotted = time.monotonic()

    def begin(self, model, effect: Effect, step: int):
        """The first measurements; on a new run the first state to go back to."""
        self.model, self.effect, self.first_step = model, effect, step
        if self.held_out is None:
            if self.state.is_new:
                self.state.remember()
            return
        self.base = self.held_out.measure_base(model)
        if self.guard.held_out not in ("", self.held_out.fingerprint):
            say(self.accelerator, "  the held-out images are others than before: the best state is looked for anew")
            self.guard.forget_best()
        self.guard.held_out = self.held_out.fingerprint
        if self.guard.best_step is None:
            self.evaluate(step)

    def log(self, step: int, epoch: int, epoch_step: int, rate: float) -> tuple[dict, str | None]:
        """Write down the means since the last time: (what was measured, why the run has died)."""
        loss = self.accelerator.reduce(torch.stack(self.state.losses).mean(), "mean").item()
        self.state.losses.clear()
        values = {"loss": loss, "learning_rate": rate, "epoch": epoch}
        if self.grad_norms:
            norms = torch.stack(self.grad_norms)
            values["grad_norm"] = norms[norms.isfinite()].mean().item()
        values |= self.effect.measure(self.state.hypernetwork)
        values["images_per_second"] = self.images * self.accelerator.num_processes / max(self.seconds, 1e-9)
        values["peak_memory_gib"] = peak_memory(self.accelerator.device)
        self.grad_norms, self.images, self.seconds = [], 0, 0.0
        if self.accelerator.scaler:
            values["loss_scale"] = self.accelerator.scaler.get_scale()
        self.accelerator.log(values, step=step)
        self._write(self.output.losses, [step, epoch, epoch_step, f"{loss:.7f}", rate])
        if values.get("loss_scale", 1) < LEAST_LOSS_SCALE:
            return values, f"the loss scale has fallen to {values['loss_scale']:.1g}: every step overflows"
        judged = {name: value for name, value in values.items() if name == "loss" or name.startswith("effect")}
        return values, self.guard.judge_values(judged)

    def evaluates(self, step: int, last: bool) -> bool:
        """Whether the held-out loss is due after `step` steps."""
        every = self.config.validation_loss_steps or self.config.validation_steps
        return self.held_out is not None and (last or step % every == 0)

    def evaluate(self, step: int) -> str | None:
        """Measure the loss on held-out images, and keep the state if it is the best so far."""
        with self.state.average.applied():
            bands = self.held_out.measure(self.model)
        self.last = bands["val_loss"]
        values = {"val_loss": self.last, "val_loss_base": self.base, **bands}
        self.accelerator.log(values, step=step)
        self.output.val_losses.columns = ["step", *values]
        self._write(self.output.val_losses, [step, *(f"{value:.7f}" for value in values.values())])
        reason = self.guard.judge_loss(step, self.last)
        if self.guard.best_step == step:
            self.state.save_best(step)
        return reason

    def find_dead(self) -> str | None:
        """Look at the weights and the losses since the last logging, before they are saved."""
        finite = [weight.isfinite().all() for weight in self.state.hypernetwork.parameters()]
        if self.state.losses:
            finite.append(self.accelerator.reduce(torch.stack(self.state.losses).mean(), "mean").isfinite())
        return None if torch.stack(finite).all() else "a loss or a weight is not finite"

    def go_back(self, step: int, reason: str) -> bool:
        """Take the run back to its best state, at a tenth of the rate; False if it should end there."""
        goes_on = self.guard.go_back()
        self.state.go_back()
        best = self.guard.best_step
        to = "the last saved state (or the start)" if best is None else f"the best state, of step {best}"
        what = f"goes back to {to}"
        what += f", at {self.guard.rate_factor:g} times the learning rate" if goes_on else " and ends there"
        say(self.accelerator, f"step {step}: {reason}; the run {what}")
        self._write(self.output.guard_log, [step, f"{reason}; {what}", self.guard.rate_factor])
        self.accelerator.log(
            {"guard/returns": self.guard.returns, "guard/rate_factor": self.guard.rate_factor}, step=step
        )
        if not goes_on and best is None:
            raise UserError(
                f"{reason} at step {step}: the run has died {self.guard.returns + 1} times, at ever lower rates; "
                "start anew with a lower --learning_rate and --overwrite, or from an earlier state"
            )
        return goes_on

    def end(self, step: int):
        """At the end of the run: what ends clearly worse than it was gives way to the best."""
        if self.guard.ends_worse:
            self.state.go_back()
            best = f"the best state, of step {self.guard.best_step} (val_loss {self.guard.best_loss:.4g})"
            say(
                self.accelerator,
                f"step {step}: val_loss {self.last:.4g} is clearly worse than the best; kept is {best}",
            )
            self._write(self.output.guard_log, [step, f"ended clearly worse; kept {best}", self.guard.rate_factor])

    def plot(self, now: bool = False):
        """Draw loss.png, unless that was done a moment ago."""
        if self.accelerator.is_main_process and (now or time.monotonic() - self._plotted > PLOT_SECONDS):
            rows, held_out = self.output.losses.rows(), self.output.val_losses.rows()
            self.output.save_picture(plot_losses(rows, self.config.name, held_out), self.output.loss_plot)
            self._plotted = time.monotonic()

    def summary(self) -> str:
        """One line on the held-out loss."""
        if self.held_out is None:
            return ""
        if self.last is None:  # nothing was left to train
            rows = self.output.val_losses.rows()
            self.last = float(rows[-1]["val_loss"]) if rows else self.guard.best_loss
        best = f"best {self.guard.best_loss:.4g} at step {self.guard.best_step}: {self.output.best}"
        line = f"  held-out loss   {self.base:.4g} without it, {self.last:.4g} with it at the end; {best}"
        if self.guard.best_step == self.first_step:
            line += "\n  nothing better than the start was found: try a lower --learning_rate, with --overwrite"
        return line

    def _write(self, table, row):
        if self.accelerator.is_main_process:
            problem = table.append(row)
            if problem:
                say(self.accelerator, f"{problem}; its rows are kept and written later")
