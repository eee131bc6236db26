"""The watch over a run: measure, write down, judge, and do what the guard says."""

import math
import time

import torch

from hypernet.training.perturbation import Effect
from hypernet.utils.errors import UserError
from hypernet.training.validation import HeldOutLoss
from hypernet.training.run_folder import OutputFolder
from hypernet.cli.script import say
from hypernet.training.trackers import peak_memory
from hypernet.training.checkpoint import TrainingState

LEAST_LOSS_SCALE = 2**-10  # below it every step overflows, whatever the scale
PLOT_SECONDS = 60  # loss.png is drawn so often, and at the end


class Watch:
    """What is measured beside the training itself.

    The methods that judge return why the run has died, or None; then `go_back` is the remedy. All processes call them.
    """

    def __init__(self, accelerator, config, output: OutputFolder, state: TrainingState, held_out: HeldOutLoss | None):
        self.accelerator, self.config, self.output = accelerator, config, output
        self.state, self.held_out, self.guard = state, held_out, state.guard
        self.base = None  # the held-out loss without the hypernetwork
        self.effect: Effect | None = None
        self.grad_norms, self.images, self.seconds = [], 0, 0.0
        self.shown: dict[str, str] = {}  # beside the progress bar
        self._warned = False
        self._plotted = time.monotonic()

    def begin(self, model, effect: Effect, step: int, changed: list[str]):
        """The first measurements; on a new run the first state to go back to.

        `changed` are the options that are others than before a resume.

        Raises:
            UserError: if the model computes nothing finite.
        """
        self.model, self.effect = model, effect
        if {"learning_rate", "lr_scheduler"} & set(changed):
            self.guard.trust()
        if self.guard.rate_factor != 1:
            say(self.accelerator, f"  the guard's {self.guard.rate_factor:g} times the learning rate goes on")
        if self.held_out is not None:
            self.base = self.held_out.measure_base(model)
            if self.guard.held_out not in ("", self.held_out.fingerprint):
                line = (
                    "  the held-out images or their captions are others than before: the best state is looked for anew"
                )
                say(self.accelerator, line)
                self.guard.forget_best()
            self.guard.held_out = self.held_out.fingerprint
            dead = self.guard.judge_values({"val_loss_base": self.base})
            if not dead and self.guard.best_step is None:
                dead = self.evaluate(step)
            if dead:
                fp16 = self.config.mixed_precision == "fp16"
                hint = "another --mixed_precision (bf16, no)" if fp16 else "another model"
                hint = "another --init_from" if self.config.init_from else hint
                raise UserError(f"before the first step {dead}: what the model computes is of no use; try {hint}")
        if not self.state.remembers:
            self.state.remember(step)

    def after_step(self, step: int, place: tuple[int, int], rate: float, began: float, last: bool, saves: bool) -> bool:
        """Measure and judge what is due after `step` steps, and go back if the run has died.

        Args:
            place: epoch and batch of the epoch.
            began: when the step began, by time.monotonic.

        Returns:
            Whether the run gives up.
        """
        dead = None
        if last or step % self.config.logging_steps == 0:
            dead = self.log(step, *place, rate, began)
        else:
            self.seconds += time.monotonic() - began
        every = self.config.validation_loss_steps or self.config.validation_steps
        if not dead and self.held_out is not None and (last or step % every == 0):
            dead = self.evaluate(step)
        if not dead and saves:
            dead = self.find_dead()
        gives_up = dead is not None and not self.go_back(step, dead)
        if last and not dead:
            self.end(step)
        return gives_up

    def log(self, step: int, epoch: int, epoch_step: int, rate: float, began: float) -> str | None:
        """Write down the means since the last time; why the run has died."""
        loss = self.accelerator.reduce(torch.stack(self.state.losses).mean(), "mean").item()  # waits for the device
        self.state.losses.clear()
        self.seconds += time.monotonic() - began
        norms, scaler = torch.stack(self.grad_norms), self.accelerator.scaler
        if scaler is not None:
            norms = norms[norms.isfinite()]  # a step that overflows is left out, and that is usual
        values = {"loss": loss, "learning_rate": rate, "epoch": epoch, "grad_norm": norms.mean().item()}
        effects = self.effect.measure(self.state.hypernetwork)
        values |= effects
        values["images_per_second"] = self.images * self.accelerator.num_processes / max(self.seconds, 1e-9)
        values["peak_memory_gib"] = peak_memory(self.accelerator.device)
        if scaler is not None:
            values["loss_scale"] = scaler.get_scale()
        self.grad_norms, self.images, self.seconds = [], 0, 0.0
        self.shown = {"loss": f"{loss:.4f}", "lr": f"{rate:.1e}"}
        self.accelerator.log(values, step=step)
        self._write(self.output.losses, [step, epoch, epoch_step, f"{loss:.7f}", f"{rate:.10g}"])
        self.output.metrics.columns = ["step", *values]
        self._write(self.output.metrics, [step, *(f"{value:.7g}" for value in values.values())])
        if values.get("loss_scale", 1) < LEAST_LOSS_SCALE:
            return f"the loss scale has fallen to {values['loss_scale']:.1g}: every step overflows"
        judged = ["loss", *effects] + (["grad_norm"] if scaler is None else [])
        return self.guard.judge_values({name: values[name] for name in judged}) or self._judge_effect(step, effects)

    def evaluate(self, step: int) -> str | None:
        """Measure the loss on held-out images, and keep the state if it is the best so far."""
        with self.state.average.applied():
            bands = self.held_out.measure(self.model)
        values = {"val_loss": bands["val_loss"], "val_loss_base": self.base, **bands}
        self.accelerator.log(values, step=step)
        self.output.val_losses.columns = ["step", *values]
        self._write(self.output.val_losses, [step, *(f"{value:.7f}" for value in values.values())])
        reason = self._judge_effect(step, self.effect.measure(self.state.hypernetwork))  # or fog might be the best
        reason = reason or self.guard.judge_loss(step, values["val_loss"])
        if self.guard.best_step == step:
            self.state.save_best(step)
        return reason

    def _judge_effect(self, step: int, effects: dict[str, float]) -> str | None:
        """What the guard says of the effect; without held-out images, or with the guard off, it is only told, once."""
        reason = self.guard.judge_effect(effects)
        if reason is None or (self.held_out is not None and self.guard.watches_loss):
            return reason
        if not self._warned:
            say(self.accelerator, f"step {step}: {reason}; it is dead or dying: stop, and lower --learning_rate")
            self._warned = True
        return None

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
        self.grad_norms = []
        best = self.guard.best_step
        self.guard.last_loss = self.guard.best_loss  # of the weights that are there now
        to = f"{'the last saved' if best is None else 'the best'} state, of step {self.state.good_step}"
        what = f"goes back to {to}"
        what += f", at {self.guard.rate_factor:g} times the learning rate" if goes_on else " and ends there"
        say(self.accelerator, f"step {step}: {reason}; the run {what}")
        self._write(self.output.guard_log, [step, f"{reason}; {what}", f"{self.guard.rate_factor:g}"])
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
        if self.held_out is not None and self.guard.ends_worse(self.base):
            self.state.go_back()
            best = f"best, {self.guard.best_loss:.4g} at step {self.guard.best_step}"
            what = f"val_loss {self.guard.last_loss:.4g} is worse than its {best}; the run ends with that state"
            say(self.accelerator, f"step {step}: {what}")
            self._write(self.output.guard_log, [step, what, f"{self.guard.rate_factor:g}"])
            self.guard.last_loss = self.guard.best_loss

    def plot(self, now: bool = False):
        """Draw loss.png, unless that was done a moment ago."""
        if self.accelerator.is_main_process and (now or time.monotonic() - self._plotted > PLOT_SECONDS):
            tables = (self.output.losses, self.output.val_losses, self.output.guard_log)
            rows, held_out, events = (table.rows() for table in tables)
            returns = [int(event["step"]) for event in events if "goes back" in event["event"]]
            try:
                from hypernet.training.loss_plot import plot_losses  # matplotlib, which nothing else here needs

                plot = plot_losses(rows, self.config.name, held_out, returns)
            except Exception as error:  # its settings may be broken; a picture is no reason to end a night's run
                say(self.accelerator, f"{self.output.loss_plot} could not be drawn ({error})")
                self._plotted = math.inf
            else:
                self.output.save_picture(plot, self.output.loss_plot)
                self._plotted = time.monotonic()

    def result(self) -> dict:
        """How the run has ended: its step, and the held-out losses."""
        found = {"step": self.state.hypernetwork.config.step, "guard_returns": self.guard.returns}
        if self.held_out is not None:
            found |= {"val_loss": self.guard.last_loss, "val_loss_base": self.base}
            found |= {"best_val_loss": self.guard.best_loss, "best_step": self.guard.best_step}
        return found

    def summary(self) -> str:
        """One or two lines on the held-out loss."""
        if self.held_out is None:
            return ""
        best = f"the best, {self.guard.best_loss:.4g} at step {self.guard.best_step}, is {self.output.best}"
        line = f"  held-out loss   {self.base:.4g} without it, {self.guard.last_loss:.4g} with what is exported; {best}"
        if self.guard.best_loss >= self.base:
            line += "\n  it was never better than the model without it: try another --learning_rate, with --overwrite"
        return line

    def _write(self, table, row):
        if self.accelerator.is_main_process:
            problem = table.append(row)
            if problem:
                say(self.accelerator, f"{problem}; its rows are kept and written later")
