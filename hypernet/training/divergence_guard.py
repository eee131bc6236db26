"""The divergence guard: which state is best so far, when a run has diverged, and what happens then.

Pure arithmetic on floats, no tensors. The remedy is what guides to the WebUI's trainer recommend: roll back to the last
good state and continue at a tenth of the learning rate.
"""

import dataclasses
import math

CLEARLY_WORSE = 1.05  # times the best validation loss; with fixed noise the loss hardly varies
PATIENCE = 3  # evaluations in a row
MAX_ROLLBACKS = 3
LEARNING_RATE_FACTOR = 0.1
MAX_PERTURBATION = 50  # relative to the contexts; healthy hypernetworks range from 0.01 to 20

# Field -> its key in checkpoints
_KEYS = {"learning_rate_factor": "rate_factor", "rollbacks": "returns", "validation_fingerprint": "held_out"}


@dataclasses.dataclass
class DivergenceGuard:
    """The guard's record of a run. Saved with every checkpoint.

    With `watches_loss` (`--guard`) a rising validation loss counts; non-finite values always do.
    """

    watches_loss: bool = True
    learning_rate_factor: float = 1.0
    rollbacks: int = 0
    best_loss: float = math.inf
    best_step: int | None = None  # of the state to roll back to
    worse: int = 0  # evaluations in a row that were clearly worse
    last_loss: float = math.inf
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

    def check_loss(self, step: int, val_loss: float) -> str | None:
        """Record the validation loss after `step` steps; return why the run has diverged, or None."""
        self.last_loss = val_loss
        if not math.isfinite(val_loss):
            return f"val_loss is {val_loss}"
        if val_loss < self.best_loss:
            self.best_loss, self.best_step = val_loss, step
        self.worse = self.worse + 1 if val_loss > CLEARLY_WORSE * self.best_loss else 0
        if self.watches_loss and self.worse >= PATIENCE:
            best = f"best, {self.best_loss:.4g} at step {self.best_step},"
            return f"val_loss {val_loss:.4g} has been clearly above its {best} for {PATIENCE} evaluations"
        return None

    def forget_best(self) -> None:
        """Start looking for the best state from scratch."""
        self.best_loss, self.best_step, self.worse, self.last_loss = math.inf, None, 0, math.inf

    def roll_back(self) -> bool:
        """Record a rollback. Return False if there have been too many and the run should stop."""
        self.worse = 0
        if self.rollbacks == MAX_ROLLBACKS:
            return False
        self.rollbacks += 1
        self.learning_rate_factor *= LEARNING_RATE_FACTOR
        return True

    def should_end_with_best(self, base_loss: float) -> bool:
        """Whether the last loss was clearly worse than the best, or worse than the base model's."""
        worse = self.last_loss > CLEARLY_WORSE * self.best_loss or self.last_loss > max(base_loss, self.best_loss)
        return self.watches_loss and worse

    def reset(self) -> None:
        """Restore the full learning rate and all rollbacks."""
        self.learning_rate_factor, self.rollbacks, self.worse = 1.0, 0, 0

    def state_dict(self) -> dict:
        """Return all fields by their keys in checkpoints."""
        return {_KEYS.get(name, name): value for name, value in dataclasses.asdict(self).items()}

    def load_state_dict(self, state: dict) -> None:
        """Restore everything but `watches_loss`, which is the current run's option."""
        names = {key: name for name, key in _KEYS.items()}
        for key, value in state.items():
            if key != "watches_loss":
                setattr(self, names.get(key, key), value)
