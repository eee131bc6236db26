"""Which learning rates suit which optimizer. Imports no torch.

The limits come from runs of 100 to 300 steps on the first quickstart's images: AdamW learns well at 1e-4 to 1e-2 and
drowns out the contexts at 5e-2; SGD learns nothing at 1e-3 and learns well at 1.
"""

import re

from hypernet.config import TrainingConfig
from hypernet.training.lr_schedule import learning_rate_schedule

# Optimizers whose steps are about as large as the learning rate, whatever the gradients
UNIT_STEPS = re.compile(r"(Paged)?(Adam|AdamW|NAdam|RAdam|Adamax|AdEMAMix|Lion|RMSprop)(8bit|32bit)?")
UNIT_LEAST, UNIT_MOST = 1e-3, 0.05  # the least sum of the learning rates of all steps; the most for one step
FINDS_ITS_OWN = ("Prodigy", "Adadelta")  # optimizers that adapt the size of their steps
# Optimizers whose learning rate has another scale -> (lowest plausible learning rate, why)
OTHER_UNITS = {
    **dict.fromkeys(FINDS_ITS_OWN, (0.1, "it finds the step size, and the learning rate multiplies it")),
    **dict.fromkeys(("SGD", "SGD8bit", "ASGD"), (0.01, "its steps are the learning rate times the small gradient")),
}
FEW_STEPS = 50  # shorter runs are trials


def most_rate(optimizer: str) -> float:
    """Return the highest learning rate to suggest for an optimizer."""
    return 1 if optimizer in OTHER_UNITS else 1e-3


def rate_range(optimizer: str) -> tuple[float, float]:
    """Return the lowest and the highest learning rate that may suit an optimizer."""
    return (1e-2, 1e3) if optimizer in OTHER_UNITS else (1e-6, 1e-1)


def rate_notes(config: TrainingConfig) -> list[str]:
    """Return a note if this learning rate will hardly move the weights, or ruin them."""
    pieces = learning_rate_schedule(config).pieces
    highest, shown = max(value for value, _ in pieces), f"--learning_rate {config.learning_rate}"
    if config.optimizer in OTHER_UNITS:
        least, why = OTHER_UNITS[config.optimizer]
        return [f"{shown}: too low for {config.optimizer}: {why}; 1 is usual"] if highest < least else []
    if not UNIT_STEPS.fullmatch(config.optimizer):
        return []
    if highest >= UNIT_MOST:
        hint = f"; did you mean {f'{highest:.0e}'.replace('+', '-')}?" if highest >= 10 else "; 1e-5 to 1e-3 are usual"
        return [f"{shown}: {config.optimizer} changes each weight by about that much per step, far too much{hint}"]
    starts = [0, *(end for _, end in pieces)]
    total = sum(value * (end - start) for (value, end), start in zip(pieces, starts))
    if total < UNIT_LEAST and config.max_train_steps >= FEW_STEPS:
        problem = f"{config.optimizer} changes each weight by at most about {total:.0e} in {starts[-1]} steps"
        return [f"{shown}: {problem}, so next to nothing is learned; raise --learning_rate or --max_train_steps"]
    return []
