"""The learning rate at each step, from a schedule in the WebUI's notation or one of diffusers' by name."""

from collections.abc import Callable

import torch
from diffusers.optimization import SchedulerType, get_scheduler

# (a piecewise constant rate is what the WebUI's notation is for)
LR_SCHEDULERS = tuple(kind.value for kind in SchedulerType if kind is not SchedulerType.PIECEWISE_CONSTANT)


def learning_rate_function(config) -> Callable[[int], float]:
    """The rate of a step (0-based), a pure function of it: there is nothing to save, and a changed option holds at once.

    Raises:
        ValueError: for what diffusers' scheduler refuses.
    """
    if config.lr_scheduler == "constant":
        return config.schedule.at
    rate = config.schedule.at(0)
    try:
        # the multiplier is all that is wanted of it
        multiplier = get_scheduler(
            config.lr_scheduler,
            torch.optim.SGD([torch.zeros(1)], lr=rate),
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=config.max_train_steps,
            num_cycles=config.lr_num_cycles,
            power=config.lr_power,
        ).lr_lambdas[0]
    except ValueError as error:
        raise ValueError(f"{config.lr_scheduler}: {error}") from None
    return lambda step: rate * multiplier(step)
