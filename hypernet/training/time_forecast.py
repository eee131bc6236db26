"""Measure how long the parts of a run take, and forecast from that how long the rest will take."""

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Mapping

import torch

from hypernet.config import TrainingConfig
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.utils.errors import counted

WARMUP = 3  # first steps, slower than the rest
MIN_STEPS, MIN_SECONDS, MAX_STEPS = 5, 15, 50  # measure until both minima or MAX_STEPS are reached
OUTLIER = 5  # times the median; steps that compile take longer and are left out


def describe_length(config: TrainingConfig, batches_per_epoch: int, first_step: int = 0) -> str:
    """Return a line on the number of steps after `first_step`, and of epochs."""
    steps = max(0, learning_rate_schedule(config).last_step - first_step)
    epochs = steps * config.gradient_accumulation_steps / batches_per_epoch
    count = f"{epochs:.0f}" if epochs >= 10 else f"{epochs:.2g}"
    return f"the run has {counted(steps, 'step')} ({count} epoch{'' if count == '1' else 's'})"


class Stopwatch:
    """Times the first steps of a run, and its other parts whenever they run: previews, validation, checkpoints.

    Args:
        compiles: whether the model is compiled, so that many of the first steps may take far longer than the rest.

    Attributes:
        parts: the latest duration of each part so far, in seconds.
    """

    def __init__(self, compiles: bool = False) -> None:
        self.parts: dict[str, float] = {}
        self._min_steps = MAX_STEPS if compiles else MIN_STEPS
        self._steps: list[float] = []

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Time a block that waits for the device by itself."""
        started = time.monotonic()
        yield
        self.parts[part] = time.monotonic() - started

    def time_step(self, started: float, device: torch.device) -> bool:
        """Time a step if it is one of the first, after waiting for the device.

        Args:
            started: when it began, by time.monotonic.

        Returns:
            Whether it was the last one to measure.
        """
        if self.is_ready:
            return False
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self._steps.append(time.monotonic() - started)
        return self.is_ready

    @property
    def is_ready(self) -> bool:
        """Whether enough steps have been measured."""
        measured = self._steps[WARMUP:]
        return len(measured) >= MAX_STEPS or (len(measured) >= self._min_steps and sum(measured) >= MIN_SECONDS)

    @property
    def step_seconds(self) -> float:
        """The mean duration of a step, without warm-up and compilation; NaN before any is measured."""
        measured = self._steps[WARMUP:]
        limit = OUTLIER * statistics.median(measured) if measured else 0
        return statistics.fmean(value for value in measured if value <= limit) if measured else math.nan

    def seconds_left(self, steps: int, counts: Mapping[str, int]) -> float:
        """Return how many seconds the rest takes, without the parts that have not been measured yet.

        Args:
            counts: how many times each part is still due.
        """
        return steps * self.step_seconds + sum(count * self.parts.get(part, 0) for part, count in counts.items())

    def describe(self, steps: int, counts: Mapping[str, int]) -> str:
        """Return a line on how long the rest takes, and its parts."""
        due = {part: count for part, count in counts.items() if count}
        parts = [f"{duration_text(self.step_seconds)} per step"]
        known = {part: count for part, count in due.items() if part in self.parts}
        parts += [f"{count} x {duration_text(self.parts[part])} for {part}" for part, count in known.items()]
        unknown = [part for part in due if part not in self.parts]
        more = f", plus the time for {' and '.join(unknown)}" if unknown else ""
        return f"the rest takes about {duration_text(self.seconds_left(steps, due))} ({', '.join(parts)}){more}"


def due_parts(config: TrainingConfig, step: int) -> tuple[int, dict[str, int]]:
    """Return the number of steps left after `step`, and how many times each part of the run is still due."""
    last_step = learning_rate_schedule(config).last_step
    every = {"previews": config.validation_steps if config.has_previews else 0}
    every["validation"] = config.has_validation * (config.validation_loss_steps or config.validation_steps)
    every["checkpoints"] = config.checkpointing_steps
    counts = {part: due_after(step, last_step, steps) for part, steps in every.items() if steps}
    return max(last_step - step, 0), counts


def due_after(step: int, last_step: int, every: int) -> int:
    """Return how many times something that is due every `every` steps, and at the last, is due after `step`."""
    return last_step // every - step // every + (last_step % every > 0 and step < last_step)


def duration_text(seconds: float) -> str:
    """Return a duration in at most two units: "0.45 s", "45 s", "12 min", "3 h 20 min", "2 days 5 h"."""
    minutes = round(seconds / 60)
    if seconds < 99.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.2g} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} days {minutes % 1440 // 60} h"
