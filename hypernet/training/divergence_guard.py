"""The watch over a run: what is best so far, when it has died, and what then is done. Pure arithmetic, no tensors.

The remedy is that of the guides to the WebUI's trainer, done by itself: go back to the last good state, go on with a tenth of the
learning rate.
"""

import dataclasses
import math

CLEARLY_WORSE = 1.05  # times the best held-out loss; with fixed noise it hardly trembles
PATIENCE = 3  # evaluations in a row
MOST_RETURNS = 3
RATE_FACTOR = 0.1
LARGEST_EFFECT = 50  # times what attention is given; living hypernetworks add from a hundredth to twenty times it


@dataclasses.dataclass
class Guard:
    """What a run has seen. It is part of the training state.

    `watches_loss` says whether a rising held-out loss counts (`--guard`); what is not finite always does.
    """

    watches_loss: bool = True
    rate_factor: float = 1.0  # of the learning rate
    returns: int = 0  # so often it went back
    best_loss: float = math.inf
    best_step: int | None = None  # of the state to go back to
    worse: int = 0  # evaluations in a row that were clearly worse
    last_loss: float = math.inf
    held_out: str = ""  # fingerprint of the images that the losses are of

    def judge_values(self, values: dict[str, float]) -> str | None:
        """Why the run has died, from values that must be finite; None if it has not."""
        dead = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
        return dead[0] if dead else None

    def judge_effect(self, effects: dict[str, float]) -> str | None:
        """Why the run has died, from the sizes of the hypernetwork's effect: its output drowns all else.

        The loss may not show it: where the base model is bad at the images, fog is no worse.
        """
        drowned = {name: value for name, value in effects.items() if not value <= LARGEST_EFFECT}
        return next(
            (f"{name} is {value:.3g}: it drowns what attention is given" for name, value in drowned.items()), None
        )

    def judge_loss(self, step: int, val_loss: float) -> str | None:
        """Why the run has died, from the held-out loss after `step` steps; notes whether it is the best so far."""
        self.last_loss = val_loss
        if not math.isfinite(val_loss):
            return f"val_loss is {val_loss}"
        if val_loss < self.best_loss:
            self.best_loss, self.best_step = val_loss, step
        self.worse = self.worse + 1 if val_loss > CLEARLY_WORSE * self.best_loss else 0
        if self.watches_loss and self.worse >= PATIENCE:
            best = f"best {self.best_loss:.4g} at step {self.best_step}"
            return f"val_loss {val_loss:.4g} has been clearly above its {best} for {PATIENCE} evaluations"
        return None

    def forget_best(self):
        """Look for the best state anew."""
        self.best_loss, self.best_step, self.worse, self.last_loss = math.inf, None, 0, math.inf

    def go_back(self) -> bool:
        """Note that the run goes back; False if it has done so too often and should stop."""
        self.worse = 0
        if self.returns == MOST_RETURNS:
            return False
        self.returns += 1
        self.rate_factor *= RATE_FACTOR
        return True

    def ends_worse(self, base: float) -> bool:
        """Whether the last evaluation was clearly worse than the best, or worse than the model without it (`base`)."""
        worse = self.last_loss > CLEARLY_WORSE * self.best_loss or self.last_loss > max(base, self.best_loss)
        return self.watches_loss and worse

    def trust(self):
        """Begin again with the whole learning rate and all returns."""
        self.rate_factor, self.returns, self.worse = 1.0, 0, 0

    def state_dict(self) -> dict:
        return dataclasses.asdict(self)

    def load_state_dict(self, state: dict):
        """Go on with what was seen; whether the loss is watched is this run's to say."""
        for name, value in state.items():
            if name != "watches_loss":
                setattr(self, name, value)
