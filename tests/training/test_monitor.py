"""The summary that a run prints when it ends."""

import math
import types
from pathlib import Path

import pytest

from hypernet.config import TrainingConfig
from hypernet.training.monitor import Monitor


def summary(change, base_loss, best_loss, rollbacks=0):
    """Return the lines of a run that ended so."""
    guard = types.SimpleNamespace(best_loss=best_loss, best_step=9, last_loss=best_loss, rollbacks=rollbacks)
    monitor = types.SimpleNamespace(
        validation=None if math.isnan(base_loss) else "images",
        guard=guard,
        base_loss=base_loss,
        change=change,
        config=TrainingConfig(),
        folder=types.SimpleNamespace(best="best"),
    )
    return Monitor.summary(monitor)


def test_names_both_losses_and_the_best_state():
    (line,) = summary(0.5, 2.0, 0.5)
    assert "2 " in line and "0.5 " in line and str(Path("best")) in line
    assert summary(0.5, math.nan, math.inf) == []


@pytest.mark.parametrize("base_loss, best_loss", [(2.0, 1.9), (2.0, 2.0), (math.nan, math.inf)])
def test_says_that_next_to_nothing_was_learned(base_loss, best_loss):
    assert "--learning_rate" in summary(0.001, base_loss, best_loss)[-1]


def test_a_state_that_the_guard_has_restored_is_not_held_against_the_run():
    assert len(summary(0.001, 2.0, 1.0, rollbacks=1)) == 1
