"""Learning rate and clipping schedules.

In the WebUI's notation "5e-6:12000, 5e-7:30000" is 5e-6 up to step 12000, then 5e-7 up to step 30000.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from hypernet.config import TrainingConfig
from hypernet.utils.errors import UserError
from hypernet.utils.numbers import meant_number, meant_whole_number

AUTO = "auto"
MAX_FACTOR = 100
POLYNOMIAL_END = 1e-7  # where diffusers' polynomial scheduler ends
STAND_IN = 1e-4  # for the learning rate that a range test will choose


class ScheduleError(UserError):
    """A schedule that cannot be parsed. The message is one line and marks the place with >>> <<<."""


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A piecewise constant function of the step."""

    pieces: tuple[tuple[float, int], ...]  # (value, end): the value applies to the steps before `end`

    @property
    def last_step(self) -> int:
        """The end of the last piece, where training ends."""
        return self.pieces[-1][1]

    def at(self, step: int) -> float:
        """Return the value for `step`, counted from 0."""
        for value, end in self.pieces:
            if step < end:
                return value
        return self.pieces[-1][0]


def auto_factor(text: str) -> float | None:
    """Return by what `--learning_rate auto` multiplies the tested learning rate: 1, or 0.5 for "auto:0.5".

    None for any other learning rate.

    Raises:
        ScheduleError: if something else follows the colon.
    """
    word, colon, number = str(text).partition(":")
    if re.search(rf"\b{AUTO}\b.*,|,\s*{AUTO}\b", str(text), re.IGNORECASE):
        raise _error(text, slice(0, len(str(text))), "auto cannot be part of a schedule; it has one of its own")
    if word.strip().lower() != AUTO:
        return None
    if not colon:
        return 1.0
    place = slice(len(word) + 1, len(str(text)))
    try:
        factor = float(number)
    except ValueError:
        raise _error(text, place, f"{number.strip()!r} is not a number{_meant(meant_number(number))}") from None
    if not 0 < factor <= MAX_FACTOR:
        raise _error(
            text, place, f"it multiplies the tested learning rate, and must be above 0 and at most {MAX_FACTOR}"
        )
    return factor


def learning_rate_schedule(config: TrainingConfig) -> Schedule:
    """Return the schedule of the learning rate; for "auto", one with the right end and a stand-in for the value.

    Raises:
        ScheduleError: if it cannot be parsed.
    """
    factor = auto_factor(config.learning_rate)
    if factor is not None:
        return Schedule(((factor * STAND_IN, config.max_train_steps),))
    return parse_schedule(config.learning_rate, config.max_train_steps)


def parse_schedule(text: str, max_steps: int) -> Schedule:
    """Parse "value", or comma-separated "value:step" pairs.

    The rules are those of the WebUI's LearnScheduleIterator: a pair without a step, or with step -1, runs to
    `max_steps`; a last boundary before `max_steps` ends the training there; pairs beyond `max_steps` are ignored;
    a trailing comma is allowed. Unlike in the WebUI, boundaries must increase, and nothing may follow a pair that runs
    to the end.

    Raises:
        ScheduleError: for anything else; the message marks the place.
    """
    pieces: list[tuple[float, int]] = []
    for value, end in _parse_pairs(text):
        pieces.append((value, max_steps if end is None else min(end, max_steps)))
        if pieces[-1][1] == max_steps:
            break
    return Schedule(tuple(pieces))


def schedule_end(text: str) -> int | None:
    """Return the step at which a learning rate ends by itself; None if it runs to the end of the training.

    Raises:
        ScheduleError: as `parse_schedule` does.
    """
    return None if auto_factor(text) else _parse_pairs(text)[-1][1]


def unreached_values(text: str, max_steps: int) -> list[float]:
    """Return the values of a schedule that a run of `max_steps` steps never reaches.

    Raises:
        ScheduleError: as `parse_schedule` does.
    """
    return [value for value, _ in _parse_pairs(text)[len(parse_schedule(text, max_steps).pieces) :]]


def _parse_pairs(text: str) -> list[tuple[float, int | None]]:
    """Return all (value, end) of a schedule; the last end may be None, which is the end of the training."""
    pairs: list[tuple[float, int | None]] = []
    start, text = 0, str(text)
    parts = text.split(",")
    for number, part in enumerate(parts):
        place = slice(start, start + len(part))
        start += len(part) + 1
        if not part.strip():
            if number == len(parts) - 1 and pairs:
                break  # a trailing comma
            raise _error(text, place, "expected a number here")
        if number and re.fullmatch(r"\d{3}", part) and re.search(r":\s*[1-9]\d{0,2}$", parts[number - 1]):
            raise _error(text, place, "a comma starts the next pair; write steps without one, such as 12000")
        value, end = _parse_pair(text, part, place)
        previous = pairs[-1][1] if pairs else 0
        if previous is None:
            raise _error(text, place, _describe_unreachable(parts[number - 1], part))
        if end is not None and end <= previous:
            raise _error(text, place, f"its step must be larger than {previous}")
        pairs.append((value, end))
    return pairs


def _describe_unreachable(before: str, part: str) -> str:
    """Return the problem of a part that follows one that runs to the end of the training."""
    before, joined = before.strip(), f"{before.strip()}.{part}"
    if re.fullmatch(r"\d+\.\d\S*", joined):
        return f"it is never reached, since {before} runs to the end ({joined} with a decimal point may be meant)"
    return f"it is never reached, since {before} runs to the end"


def _parse_pair(text: str, part: str, place: slice) -> tuple[float, int | None]:
    """Parse one "value" or "value:step"; the step is None for the end of the training."""
    value_text, *rest = part.split(":")
    try:
        value = float(value_text)
    except ValueError:
        raise _error(text, place, f"{value_text.strip()!r} is not a number{_meant(meant_number(value_text))}") from None
    if not math.isfinite(value) or value < 0:
        raise _error(text, place, "the value must be a finite number, 0 or more")
    if not rest:
        return value, None
    try:
        (end,) = (int(item) for item in rest)
    except ValueError:
        problem = f"{':'.join(rest).strip()!r} is not a step{_meant(meant_whole_number(':'.join(rest)))}"
        raise _error(text, place, problem) from None
    if end == -1:
        return value, None
    if end < 1:
        raise _error(text, place, "the step must be 1 or more (or -1 for the end)")
    return value, end


def _meant(number: object) -> str:
    return "" if number is None else f" ({number} may be meant)"


def _error(text: str, place: slice, problem: str) -> ScheduleError:
    marked = f"{text[: place.start]}>>>{text[place]}<<<{text[place.stop :]}"
    return ScheduleError(f'"{marked}": {problem}')


def learning_rate_function(config: TrainingConfig) -> Callable[[int], float]:
    """Return a function from the step, counted from 0, to its learning rate.

    It depends only on the options and the step, so checkpoints need not save it, and a resumed run may
    change the options.
    """
    schedule = learning_rate_schedule(config)
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
    """Return the schedule of the clipping threshold: --max_grad_value in mode value, else --max_grad_norm."""
    text = config.max_grad_value if config.clip_grad_mode == "value" else config.max_grad_norm
    return parse_schedule(text, config.max_train_steps)
