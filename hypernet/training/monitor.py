"""Measure and log a run, detect divergence, and carry out the divergence guard's decisions."""

import math
import time

import torch

from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.training.accelerator import peak_memory, print_main
from hypernet.training.checkpoint import Checkpointer
from hypernet.training.perturbation import Perturbation
from hypernet.training.preview_scores import PreviewScores, Scores
from hypernet.training.run import Run
from hypernet.training.run_folder import SCORE_COLUMNS
from hypernet.training.shutdown import Interrupted, ShutdownSignals
from hypernet.training.time_forecast import due_parts
from hypernet.training.validation import ValidationLoss
from hypernet.utils.csv_log import CsvLog
from hypernet.utils.errors import UserError

MIN_LOSS_SCALE = 2**-10  # below it every step overflows, whatever the scale


class Monitor:
    """All measurements of a run. All processes call its methods.

    Methods that check for divergence return why the run has diverged, or None; `settle` applies the remedy.

    Attributes:
        progress: texts for the progress bar.
    """

    def __init__(
        self,
        run: Run,
        checkpointer: Checkpointer,
        validation: ValidationLoss | None,
        model: HypernetworkUNet,
        perturbation: Perturbation,
        signals: ShutdownSignals,
        scores: PreviewScores | None = None,
    ):
        self.accelerator, self.config, self.folder = run.accelerator, run.config, run.folder
        self.trackers, self.failures, self.signals, self.stopwatch = run.trackers, run.failures, signals, run.stopwatch
        self.checkpointer, self.validation, self.guard = checkpointer, validation, checkpointer.guard
        self.model, self.perturbation = model, perturbation
        self.scores = scores
        self.base_loss = math.nan  # the validation loss without the hypernetwork
        self.change: float | None = None  # `Perturbation.change` of the last state, not of a restored one
        self.images, self.seconds = 0, 0.0
        self.progress: dict[str, str] = {}
        self._warned = False
        self._restored = 0  # how often the weights have been replaced by the best ones
        self._scored = (-1, 0)  # the state whose scores are known

    def begin(self, step: int, last: bool, changed: list[str]) -> bool:
        """Make the first measurements; on a new run, remember the first state to roll back to.

        Args:
            step: the number of steps already taken.
            last: whether none are left.
            changed: options changed since the last run.

        Returns:
            Whether the run gives up, as `settle` does.

        Raises:
            UserError: if the model's output is not finite.
        """
        if line := self.guard.begin(changed):
            print_main(self.accelerator, f"  {line}")
        if self.validation is not None:
            self._begin_validation(step, self.validation)
        if not self.checkpointer.has_good_state:
            self.checkpointer.remember(step)
        if self.validation is None or not self.guard.validation_due:
            return self.guard.has_ended
        gives_up = self.settle(step, self.evaluate(step), last, saves=True)  # interrupted by a signal in the last run
        self.checkpointer.save(step)
        return gives_up

    def _begin_validation(self, step: int, validation: ValidationLoss) -> None:
        with self.stopwatch.timing("validation"):
            self.base_loss = validation.measure_base(self.model)
        if self.guard.validation_fingerprint not in ("", validation.fingerprint):
            line = "  the validation images or their captions have changed: the search for the best state starts over"
            print_main(self.accelerator, line)
            self.guard.forget_best()
        self.guard.validation_fingerprint = validation.fingerprint
        problem = self.guard.check_finite({"val_loss_base": self.base_loss})
        if not problem and not self.guard.has_evaluated:
            tables = (self.folder.validation_losses, self.folder.scores)
            for table in tables if self.accelerator.is_main_process else ():
                self.failures.report(table.roll_back_to(step - 1))  # what a killed run may have left
            problem = self.evaluate(step)
        if problem:
            fp16 = self.config.mixed_precision == "fp16"
            hint = "another --mixed_precision (bf16, no)" if fp16 else "another model"
            hint = "another --init_from" if self.config.init_from else hint
            raise UserError(f"before the first step {problem}: the model's output is unusable; try {hint}")

    def measure(
        self, step: int, place: tuple[int, int], learning_rate: float, started: float, last: bool
    ) -> str | None:
        """Take the measurements due after `step` steps. Return why the run has diverged, or None.

        Args:
            place: epoch and batch within it.
            started: when the step began, by time.monotonic.
        """
        problem = None
        if self.stopwatch.time_step(started, self.accelerator.device):
            print_main(self.accelerator, self.stopwatch.describe(*due_parts(self.config, step)))
        if last or step % self.config.logging_steps == 0:
            problem = self.log(step, *place, learning_rate, started)
        else:
            self.seconds += time.monotonic() - started
        every = self.config.validation_loss_steps or self.config.validation_steps
        if not problem and self.validation is not None and (last or step % every == 0):
            with self.stopwatch.timing("validation"):
                problem = self.evaluate(step)
        return problem

    def settle(self, step: int, problem: str | None, last: bool, saves: bool) -> bool:
        """Roll back if the run has diverged. Check the weights here, too, before they are saved.

        Args:
            problem: the result of `measure`.

        Returns:
            Whether the run gives up.
        """
        if not problem and saves:
            problem = self.find_nonfinite()
        gives_up = problem is not None and not self.roll_back(step, problem)
        if last and not problem and not self.guard.validation_due:
            self.finish(step)
        return gives_up

    def log(self, step: int, epoch: int, epoch_step: int, learning_rate: float, started: float) -> str | None:
        """Log the means since the last time. Return why the run has diverged, or None."""
        losses = torch.stack(self.checkpointer.losses)
        loss = self.accelerator.reduce(losses.mean(), "mean").item()  # waits for the device
        self.checkpointer.losses.clear()
        self.seconds += time.monotonic() - started
        norms, scaler = torch.stack(self.checkpointer.grad_norms), self.accelerator.scaler
        if scaler is not None:
            norms = norms[norms.isfinite()]  # the scaler skips steps that overflow, as some always do
        values = {"loss": loss, "learning_rate": learning_rate, "epoch": epoch, "grad_norm": norms.mean().item()}
        perturbations = self.perturbation.measure(self.checkpointer.hypernetwork)
        values |= perturbations
        values["images_per_second"] = self.images * self.accelerator.num_processes / max(self.seconds, 1e-9)
        values["peak_memory_gib"] = peak_memory(self.accelerator.device)
        if scaler is not None:
            values["loss_scale"] = scaler.get_scale()
        self.checkpointer.grad_norms.clear()
        self.images, self.seconds = 0, 0.0
        self.progress |= {"loss": f"{loss:.4f}", "lr": f"{learning_rate:.1e}"}
        self.trackers.log(values, step)
        self._write(self.folder.losses, [step, epoch, epoch_step, f"{loss:.7f}", f"{learning_rate:.10g}"])
        self.folder.metrics.columns = ["step", *values]
        self._write(self.folder.metrics, [step, *(f"{value:.7g}" for value in values.values())])
        if values.get("loss_scale", 1) < MIN_LOSS_SCALE:
            return f"the loss scale has fallen to {values['loss_scale']:.1g}: every step overflows"
        judged = ["loss", *perturbations] + (["grad_norm"] if scaler is None else [])
        problem = self.guard.check_finite({name: values[name] for name in judged})
        return problem or self._check_perturbation(step, perturbations)

    def evaluate(self, step: int) -> str | None:
        """Measure the validation loss, and keep the state if it is the best so far.

        If a signal interrupts the measurement, the run that resumes from this step begins with it.
        """
        assert self.validation is not None
        try:
            with self.checkpointer.ema.applied():
                bands = self.validation.measure(self.model, self.signals.check)
            scores = self.score(step)
        except Interrupted:
            self.guard.validation_due = True
            return None
        self.guard.validation_due = False
        values = {"val_loss": bands["val_loss"], "val_loss_base": self.base_loss, **bands}
        self.folder.validation_losses.columns = ["step", *values]
        self._write(self.folder.validation_losses, [step, *(f"{value:.7f}" for value in values.values())])
        # before the loss, so that a state that drowns out the context cannot become the best
        problem = self._check_perturbation(step, self.perturbation.measure(self.checkpointer.hypernetwork))
        problem = problem or self.guard.check_evaluation(step, values["val_loss"], scores.get("prompt_fidelity"))
        if self.guard.best_step is not None:
            values |= {"best_val_loss": self.guard.best_loss, "best_step": self.guard.best_step}
        self.trackers.log(values, step)
        if self.guard.best_step == step:
            self.checkpointer.save_best(step)
        return problem

    def state(self, step: int) -> tuple[int, int]:
        """Return what identifies the weights after `step` steps; see `Previewer.sample`."""
        return step, self._restored

    def score(self, step: int, state: object = None, exported: bool = False) -> Scores:
        """Return the scores of what the hypernetwork generates after `step` steps; measure and log them at first.

        Args:
            state: see `Previewer.sample`; default: that of the weights.
            exported: measure again if a better state has been restored since, which is then exported.

        Raises:
            Interrupted: on all processes, if one has received a signal.
        """
        if self.scores is None:
            return {}
        if self._scored == self.state(step) or (self._scored[0] == step and not exported):
            return self.scores.values
        with self.checkpointer.ema.applied():
            values = self.scores.measure(state or self.state(step), self.signals.check)
        self._scored = self.state(step)
        rows = self.folder.scores.rows() if self.accelerator.is_main_process else []
        if values and not any(int(row["step"]) == step for row in rows):  # the resumed run may have been here
            self.trackers.log(values, step)
            cells = {name: f"{value:.4f}" for name, value in values.items()}
            self._write(self.folder.scores, [step, *(cells.get(name, "") for name in SCORE_COLUMNS[1:])])
            self.progress |= {name: f"{value:.2f}" for name, value in values.items() if name != "score"}
        return values

    def _check_perturbation(self, step: int, perturbations: dict[str, float]) -> str | None:
        """Return why the run has diverged, or None. Without validation images or guard, only warn, once."""
        problem = self.guard.check_perturbation(perturbations)
        if problem is None or (self.validation is not None and self.guard.watches_loss):
            return problem
        if not self._warned:
            line = f"step {step}: {problem}; the run has diverged or is about to: stop, and lower --learning_rate"
            print_main(self.accelerator, line)
            self._warned = True
        return None

    def find_nonfinite(self) -> str | None:
        """Check the weights, and the losses since the last logging, before they are saved."""
        finite = [weight.isfinite().all() for weight in self.checkpointer.hypernetwork.parameters()]
        if self.checkpointer.losses:
            losses = torch.stack(self.checkpointer.losses)
            finite.append(self.accelerator.reduce(losses.mean(), "mean").isfinite())
        return None if torch.stack(finite).all() else "a loss or a weight is not finite"

    def roll_back(self, step: int, problem: str) -> bool:
        """Restore the best state, at a lower learning rate. Return False if the run should end there."""
        continues = self.guard.roll_back()
        self.checkpointer.roll_back()
        self.guard.validation_due = False
        best = self.guard.best_step
        self._restore_best()
        state = f"{'the last saved' if best is None else 'the best'} state, of step {self.checkpointer.good_step}"
        what = f"goes back to {state}"
        factor = f"{self.guard.learning_rate_factor:.3g}"
        what += f", at {factor} times the learning rate" if continues else " and ends there"
        print_main(self.accelerator, f"step {step}: {problem}; the run {what}")
        self._write(self.folder.guard_log, [step, f"{problem}; {what}", f"{self.guard.learning_rate_factor:g}"])
        values = {"guard/returns": self.guard.rollbacks, "guard/rate_factor": self.guard.learning_rate_factor}
        self.trackers.log(values, step)
        self.trackers.summarize({"guard_returns": self.guard.rollbacks})  # in case the run crashes
        if not continues and best is None:
            raise UserError(
                f"{problem} at step {step}: the run has diverged {self.guard.rollbacks + 1} times, at ever lower "
                "learning rates; start over with a lower --learning_rate and --overwrite, or from an earlier checkpoint"
            )
        return continues

    def finish(self, step: int) -> None:
        """End with the best state if the last one is clearly worse."""
        self.measure_change()
        if self.validation is not None and self.guard.should_end_with_best(self.base_loss):
            self.checkpointer.roll_back()
            best = f"of step {self.guard.best_step}, with val_loss {self.guard.best_loss:.4g}"
            what = f"val_loss {self.guard.last_loss:.4g} is worse than its best"
            if self.guard.is_low:
                what = f"prompt_fidelity {self.guard.last_fidelity:.2f} is below {self.guard.min_fidelity:g}"
            what += f"; the run ends with the best state, {best}"
            print_main(self.accelerator, f"step {step}: {what}")
            self._write(self.folder.guard_log, [step, what, f"{self.guard.learning_rate_factor:g}"])
            self._restore_best()

    def _restore_best(self) -> None:
        """Record that the weights are the best ones again."""
        self.guard.restore_best()
        self._restored += 1

    def measure_change(self) -> None:
        """Measure `change`."""
        with self.checkpointer.ema.applied():
            self.change = self.perturbation.change(self.checkpointer.hypernetwork)

    def _write(self, table: CsvLog, row: list) -> None:
        if self.accelerator.is_main_process:
            self.failures.report(table.append(row))
