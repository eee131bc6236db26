"""How long a run takes, from what its first steps and its other parts have taken."""

import time

import pytest
import torch

from hypernet.config import TrainingConfig
from hypernet.training.time_forecast import MAX_STEPS, MIN_STEPS, WARMUP, Stopwatch, due_after, due_parts, duration_text

CPU = torch.device("cpu")


def timed(*durations):
    """Return a stopwatch that has timed steps of these durations, and the steps after which the forecast was due."""
    stopwatch = Stopwatch()
    due = [i for i, seconds in enumerate(durations) if stopwatch.time_step(time.monotonic() - seconds, CPU)]
    return stopwatch, due


@pytest.mark.parametrize("step, last, every", [(0, 10, 3), (3, 10, 3), (4, 9, 3), (10, 10, 3), (9, 10, 500), (0, 5, 5)])
def test_counts_what_is_still_due(step, last, every):
    assert due_after(step, last, every) == sum(
        later % every == 0 or later == last for later in range(step + 1, last + 1)
    )


def test_counts_only_the_parts_that_a_run_has():
    config = TrainingConfig(learning_rate="1e-5:100, 1e-6:900", max_train_steps=1000, checkpointing_steps=250)
    assert due_parts(config, 200) == (700, {"checkpoints": 4})
    config.validation_prompt, config.validation_split, config.validation_loss_steps = ["a cat"], 0.1, 100
    assert due_parts(config, 500) == (400, {"previews": 1, "validation": 4, "checkpoints": 2})


def test_the_forecast_is_due_once_there_are_enough_steps():
    for fast, slow in ((MAX_STEPS, MIN_STEPS),):
        assert timed(*[0.01] * 100)[1] == [WARMUP + fast - 1]
        assert timed(*[60] * 100)[1] == [WARMUP + slow - 1]


def test_warm_up_and_compilation_do_not_count():
    stopwatch, due = timed(90, 40, 9, 3, 3.1, 120, 3.2, 3, 3)
    assert len(due) == 1 and stopwatch.step_seconds == pytest.approx(3.1, abs=0.1)


def test_a_run_that_compiles_waits_for_more_steps():
    stopwatch = Stopwatch(compiles=True)
    slow = [60.0] * 12 + [0.5] * 100
    due = [i for i, seconds in enumerate(slow) if stopwatch.time_step(time.monotonic() - seconds, CPU)]
    assert due == [WARMUP + MAX_STEPS - 1] and stopwatch.step_seconds == pytest.approx(0.5, abs=0.05)


def test_adds_what_else_is_due_at_the_cost_it_had():
    stopwatch, _ = timed(*[4] * 8)
    stopwatch.parts |= {"previews": 30, "validation": 10}
    counts = {"previews": 2, "validation": 3, "checkpoints": 5}
    assert stopwatch.seconds_left(100, counts) == pytest.approx(400 + 60 + 30, abs=1)
    line = stopwatch.describe(100, counts)
    assert "8 min" in line and "checkpoints" in line  # which are not measured yet
    with stopwatch.timing("checkpoints"):
        time.sleep(0.02)
    assert 0.02 <= stopwatch.parts["checkpoints"] < 1


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.123, "0.12 s"),
        (5, "5 s"),
        (14.2, "14 s"),
        (99, "99 s"),
        (100, "2 min"),
        (3570, "1 h 0 min"),
        (12000, "3 h 20 min"),
        (190800, "2 days 5 h"),
    ],
)
def test_durations(seconds, text):
    assert duration_text(seconds) == text
