"""Say at the end of a run if next to nothing was learned, and what would help.

The limits come from runs of 200 steps on the images of the first quickstart (earlier than today's), with three
structures and learning rates from 1e-7 to 1e-2: where training changes the contexts by less than LEAST_CHANGE, the
validation loss falls by at most a thirtieth of what a good learning rate achieves; from a change of 0.1, by a quarter
or more.
"""

import math

from hypernet.config import TrainingConfig
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.training.optimizer_rates import FEW_STEPS, most_rate

NEXT_TO_NOTHING = 0.005  # of the base model's validation loss; a smaller gain counts as none
LEAST_CHANGE, USEFUL_CHANGE = 0.01, 0.3  # see `Perturbation.change`
CLEAR_CHANGE = 0.1  # a hypernetwork that changes this much and gains nothing has learned something else


def learning_note(config: TrainingConfig, change: float | None, base_loss: float, best_loss: float) -> str | None:
    """Return a note if a run has learned next to nothing, else None.

    Args:
        change: the result of `Perturbation.change`.
        base_loss: the validation loss without the hypernetwork; NaN without validation images.
        best_loss: the lowest one with it; NaN if no state could be the best.
    """
    steps = learning_rate_schedule(config).last_step
    if change is not None and change < LEAST_CHANGE and steps >= FEW_STEPS:
        problem = f"next to nothing was learned: training has changed the contexts by only {100 * change:.2g}%"
        useful = f"a useful hypernetwork changes them by {100 * CLEAR_CHANGE:.0f}% or more"
        return f"{problem} ({useful}); {_remedy(config, change)}"
    if not best_loss > (1 - NEXT_TO_NOTHING) * base_loss:
        return None
    without = "without the hypernetwork"
    if best_loss >= base_loss:
        return f"the validation loss was never better than {without}: try another --learning_rate, with --overwrite"
    if steps < FEW_STEPS:
        return None
    problem = f"the validation loss is hardly better than {without}"
    if change is not None and change >= CLEAR_CHANGE:
        what = f"though training has changed the contexts by {100 * change:.2g}%"
        return f"{problem}, {what}: try a lower --learning_rate, with --overwrite, and look at the captions"
    return f"{problem}: raise --max_train_steps, or --learning_rate with --overwrite"


def _remedy(config: TrainingConfig, change: float) -> str:
    """Return a learning rate or number of steps for a clear change; a small change grows in proportion to both."""
    factor = 10 ** max(1, math.floor(math.log10(USEFUL_CHANGE / max(change, 1e-9))))
    pieces = learning_rate_schedule(config).pieces
    rate = max(value for value, _ in pieces)
    times = int(min(factor, max(most_rate(config.optimizer) / rate, 1))) if rate > 0 else 1
    if times < 2:
        return f"raise --max_train_steps to {factor * pieces[-1][1]}, or --learning_rate with --overwrite"
    shown = f"{times * rate:.2g}" if len(pieces) == 1 else f"{times} times as high"
    return f"try a --learning_rate of {shown} with --overwrite, or more steps"
