"""The default number of steps and scheduler, which follow from the learning rate. Does not import torch."""

from collections.abc import Callable
from typing import TypeVar

from hypernet.config import LRScheduler, TrainingConfig
from hypernet.training.lr_schedule import ScheduleError, auto_factor, schedule_end
from hypernet.utils.errors import UserError

Value = TypeVar("Value")

SCHEDULE_EXAMPLES = {  # option -> what to write instead of a malformed value
    "learning_rate": '"1e-5", "5e-6:12000, 5e-7:30000", "auto" or "auto:0.5"',
    "max_grad_norm": '"0.5" or "1.0:1000, 0.5:30000"',
    "max_grad_value": '"0.05" or "0.1:1000, 0.05:30000"',
}


def default_steps(learning_rate: str, num_train_epochs: int | None = None) -> int:
    """Return the number of steps if --max_train_steps is not given: the end of the learning rate schedule, if any.

    With --num_train_epochs, which takes precedence, this is only a placeholder.

    Raises:
        UserError: if the schedule is malformed.
    """
    end = _read(schedule_end, learning_rate)
    return TrainingConfig.max_train_steps if end is None or num_train_epochs is not None else end


def default_scheduler(learning_rate: str) -> LRScheduler:
    """Return the scheduler if --lr_scheduler is not given.

    Raises:
        UserError: if the learning rate is malformed.
    """
    return TrainingConfig.lr_scheduler if _read(auto_factor, learning_rate) is None else "cosine"


def _read(read: Callable[[str], Value], learning_rate: str) -> Value:
    try:
        return read(learning_rate)
    except ScheduleError as error:
        raise UserError(f"--learning_rate {error}; write {SCHEDULE_EXAMPLES['learning_rate']}") from None
