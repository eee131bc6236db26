"""The divergence guard: which state is best so far, when a run has diverged, and what happens then.

Pure arithmetic on floats, no tensors. The remedy is what guides to the WebUI's trainer recommend: roll back to the last
good state and continue at a tenth of the learning rate. If the first rollback is because of lost subjects, it is a
third: the learning rate is then often only a little too high, and a tenth would learn next to nothing of the style.
"""

import dataclasses
import math
from collections.abc import Collection

CLEARLY_WORSE = 1.05  # times the best validation loss; with fixed noise the loss hardly varies
PATIENCE = 3  # evaluations in a row
LOW_PATIENCE = 2  # likewise, with too low a prompt fidelity; one evaluation is enough at less than half of it
MAX_ROLLBACKS = 3
LEARNING_RATE_FACTOR, FIRST_FACTOR = 0.1, 1 / 3  # the latter if the first rollback is for lost subjects
TRUSTED = {"learning_rate", "lr_scheduler", "guard", "min_prompt_fidelity"}  # options; the guard starts over for them
MAX_PERTURBATION = 50  # relative to the contexts; healthy hypernetworks range from 0.01 to 20

# Field -> its key in checkpoints
_KEYS = {"learning_rate_factor": "rate_factor", "rollbacks": "returns", "validation_fingerprint": "held_out"}


@dataclasses.dataclass
class DivergenceGuard:
    """The guard's record of a run. Saved with every checkpoint.

    With `watches_loss` (`--guard`) a rising validation loss and a low prompt fidelity count; non-finite values always
    do.
    """

    watches_loss: bool = True
    min_fidelity: float = 0.0  # of a state that may be the best
    learning_rate_factor: float = 1.0
    rollbacks: int = 0
    has_ended: bool = False  # the run, after too many rollbacks
    best_loss: float = math.inf
    best_step: int | None = None  # of the state to roll back to
    worse: int = 0  # evaluations in a row that were clearly worse
    low: int = 0  # evaluations in a row with too low a prompt fidelity
    last_loss: float = math.inf
    last_fidelity: float | None = None  # None if it is not measured
    best_fidelity: float | None = None
    has_evaluated: bool = False  # since the search for the best state began
    validation_fingerprint: str = ""  # of the validation images the losses were measured on
    validation_due: bool = False  # a signal has interrupted the measurement of the validation loss

    def check_finite(self, values: dict[str, float]) -> str | None:
        """Return why the run has diverged if one of the values is not finite, else None."""
        bad = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        return bad[0] if bad else None

    def check_perturbation(self, perturbations: dict[str, float]) -> str | None:
        """Return why the run has diverged if the hypernetwork drowns out the contexts, else None.

        The loss may not show it: where the base model does badly on the images, noise may do no worse.
        """
        too_large = {name: value for name, value in perturbations.items() if not value <= MAX_PERTURBATION}
        return next((f"{name} is {value:.3g}: it drowns out the context" for name, value in too_large.items()), None)

    def check_evaluation(self, step: int, val_loss: float, fidelity: float | None = None) -> str | None:
        """Record an evaluation after `step` steps; return why the run has diverged, or None.

        Args:
            fidelity: the prompt fidelity; None if it could not be measured.
        """
        self.last_loss, self.last_fidelity, self.has_evaluated = val_loss, fidelity, True
        if not math.isfinite(val_loss):
            return f"val_loss is {val_loss}"
        if val_loss < self.best_loss and not self.is_low:
            self.best_loss, self.best_step, self.best_fidelity = val_loss, step, fidelity
        self.worse = self.worse + 1 if val_loss > CLEARLY_WORSE * self.best_loss else 0
        self.low = self.low + 1 if self.is_low else 0
        if fidelity is not None and fidelity < self.min_fidelity / 2:
            self.low = max(self.low, LOW_PATIENCE)
        if self.watches_loss and self.worse >= PATIENCE:
            best = f"best, {self.best_loss:.4g} at step {self.best_step},"
            return f"val_loss {val_loss:.4g} has been clearly above its {best} for {PATIENCE} evaluations"
        if self.watches_loss and self.low >= LOW_PATIENCE and self.best_step is not None:
            low = f"prompt_fidelity {fidelity:.2f} is less than half of {self.min_fidelity:g}"
            if fidelity is not None and fidelity >= self.min_fidelity / 2:
                low = f"prompt_fidelity {fidelity:.2f} is below {self.min_fidelity:g}, as at the measurement before"
            return f"{low} (if its previews show their prompts, lower --min_prompt_fidelity)"
        return None

    @property
    def is_low(self) -> bool:
        """Whether the last evaluation's prompt fidelity was too low."""
        return self.last_fidelity is not None and self.last_fidelity < self.min_fidelity

    def forget_best(self) -> None:
        """Start looking for the best state from scratch."""
        self.best_loss, self.best_step, self.best_fidelity = math.inf, None, None
        self.last_loss, self.last_fidelity, self.has_evaluated = math.inf, None, False
        self.worse, self.low = 0, 0

    def restore_best(self) -> None:
        """Record that the run has the best state again."""
        self.last_loss, self.last_fidelity = self.best_loss, self.best_fidelity

    def roll_back(self) -> bool:
        """Record a rollback. Return False if there have been too many and the run should stop."""
        has_lost_subjects = self.watches_loss and self.low >= LOW_PATIENCE
        self.worse, self.low = 0, 0
        if self.rollbacks == MAX_ROLLBACKS:
            self.has_ended = True
            return False
        is_gentle = has_lost_subjects and not self.rollbacks
        self.rollbacks += 1
        self.learning_rate_factor *= FIRST_FACTOR if is_gentle else LEARNING_RATE_FACTOR
        return True

    def should_end_with_best(self, base_loss: float) -> bool:
        """Whether the last loss was clearly worse than the best, or worse than the base model's, or the images ruined."""
        if self.best_step is None:
            return False
        worse = (
            self.is_low
            or self.last_loss > CLEARLY_WORSE * self.best_loss
            or self.last_loss > max(base_loss, self.best_loss)
        )
        return self.watches_loss and worse

    def begin(self, changed: Collection[str]) -> str | None:
        """Reset if one of the `TRUSTED` options has changed since the last run. Return a line on what applies, or None."""
        if TRUSTED & set(changed):
            has_acted = self.rollbacks > 0
            self.reset()
            return "the divergence guard starts over: the learning rate applies in full" if has_acted else None
        if self.has_ended:
            options = "--learning_rate or --min_prompt_fidelity, or use --no_guard"
            return f"the divergence guard has ended this run; to continue, change {options}"
        if self.learning_rate_factor != 1:
            return f"the divergence guard still multiplies the learning rate by {self.learning_rate_factor:g}"
        return None

    def reset(self) -> None:
        """Restore the full learning rate, count rollbacks from zero, and let a run that has ended continue."""
        self.learning_rate_factor, self.rollbacks, self.worse, self.low, self.has_ended = 1.0, 0, 0, 0, False

    def state_dict(self) -> dict:
        """Return all fields by their keys in checkpoints."""
        return {_KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore everything but `watches_loss` and `min_fidelity`, which are the current run's options.

        A best state that they no longer allow is forgotten.
        """
        names = {key: name for name, key in _KEYS.items()}
        for key, value in state.items():
            if key not in ("watches_loss", "min_fidelity"):
                setattr(self, names.get(key, key), value)
        self.has_evaluated = self.has_evaluated or self.best_step is not None  # earlier versions did not save it
        if self.best_fidelity is not None and self.best_fidelity < self.min_fidelity:
            self.forget_best()
