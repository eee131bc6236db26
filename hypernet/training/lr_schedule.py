"""Step schedules in the WebUI's notation: "5e-6:12000, 5e-7:30000" is 5e-6 up to step 12000, then 5e-7 up to 30000."""

import dataclasses
import math
from collections.abc import Callable

from hypernet.config import TrainingConfig
from hypernet.utils.errors import UserError


class ScheduleError(UserError):
    """A schedule that does not parse. The message is one line and marks the place with >>> <<<."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A piecewise constant value. `pieces` holds (value, end): the value holds for the steps before `end`."""

    pieces: tuple[tuple[float, int], ...]

    @property
    def last_step(self) -> int:
        """Training ends here: the end of the last piece."""
        return self.pieces[-1][1]

    def at(self, step: int) -> float:
        """The value for `step` (0-based: the number of updates made before it)."""
        for value, end in self.pieces:
            if step < end:
                return value
        return self.pieces[-1][0]


def parse_schedule(text: str, max_steps: int) -> Schedule:
    """Parse "value", or comma-separated "value:step" pairs.

    Rules of the WebUI's LearnScheduleIterator: a pair without a step, or with step -1, runs to `max_steps` and ends
    the list; a last boundary before `max_steps` ends the training there; a trailing comma is fine. Unlike it,
    boundaries that do not increase are refused.

    Raises:
        ScheduleError: for anything else, with the place marked.
    """
    pieces, previous, start, ended = [], 0, 0, False
    parts = str(text).split(",")
    for number, part in enumerate(parts):
        place = slice(start, start + len(part))
        start += len(part) + 1
        if not part.strip():
            if number == len(parts) - 1 and pieces:
                break  # a trailing comma
            raise _error(text, place, "expected a number here")
        value, end = _parse_pair(text, part, place)
        if not ended:
            if end is not None and end <= previous:
                raise _error(text, place, f"its step must be larger than {previous}")
            previous = end
            ended = end is None or end >= max_steps
            pieces.append((value, max_steps if ended else end))
    return Schedule(tuple(pieces))


def _parse_pair(text, part, place):
    """One "value" or "value:step" -> (value, step or None for "to the end")."""
    value_text, *rest = part.split(":")
    try:
        value = float(value_text)
    except ValueError:
        raise _error(text, place, f"{value_text.strip()!r} is not a number") from None
    if not math.isfinite(value) or value < 0:
        raise _error(text, place, "the value must be a finite number, 0 or more")
    if not rest:
        return value, None
    try:
        (end,) = (int(item) for item in rest)
    except ValueError:
        raise _error(text, place, f"{':'.join(rest).strip()!r} is not a step") from None
    if end == -1:
        return value, None
    if end < 1:
        raise _error(text, place, "the step must be 1 or more (or -1 for the end)")
    return value, end


def _error(text, place, problem):
    text = str(text)
    marked = f"{text[: place.start]}>>>{text[place]}<<<{text[place.stop :]}"
    return ScheduleError(f'"{marked}": {problem}; write for example "1e-5" or "5e-6:12000, 5e-7:30000"')


def learning_rate_function(config: TrainingConfig) -> Callable[[int], float]:
    """Return a function from the step (0-based) to its learning rate.

    It depends on nothing but the options and the step, so a checkpoint need not save it, and changed options apply at once.
    """
    schedule = parse_schedule(config.learning_rate, config.max_train_steps)
    if config.lr_scheduler == "constant":
        return schedule.at
    import torch
    from diffusers.optimization import get_scheduler

    learning_rate = schedule.at(0)
    multiplier = get_scheduler(
        config.lr_scheduler,
        torch.optim.SGD([torch.zeros(1)], lr=learning_rate),  # never stepped: only the multiplier is wanted
        num_warmup_steps=config.lr_warmup_steps,
        num_training_steps=config.max_train_steps,
        num_cycles=config.lr_num_cycles,
        power=config.lr_power,
    ).lr_lambdas[0]
    return lambda step: learning_rate * multiplier(step)


def clipping_schedule(config: TrainingConfig) -> Schedule:
    """Return the schedule of the clipping threshold, of the norm or of values as --clip_grad_mode says."""
    text = config.max_grad_value if config.clip_grad_mode == "value" else config.max_grad_norm
    return parse_schedule(text, config.max_train_steps)
