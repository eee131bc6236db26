"""The summary that a run prints when it ends."""

import types
from pathlib import Path

import pytest

from hypernet.training.monitor import NEXT_TO_NOTHING, Monitor


@pytest.mark.parametrize(
    "best, advises", [(0.5, False), (1.99, False), (2 * (1 - NEXT_TO_NOTHING / 2), True), (2.0, True), (2.1, True)]
)
def test_advises_if_next_to_nothing_was_learned(best, advises):
    guard = types.SimpleNamespace(best_loss=best, best_step=9, last_loss=best)
    monitor = types.SimpleNamespace(
        validation="images", guard=guard, base_loss=2.0, folder=types.SimpleNamespace(best="best")
    )
    line, *advice = Monitor.summary(monitor).splitlines()
    assert "2 " in line and str(Path("best")) in line
    assert len(advice) == advises and all("--learning_rate" in each for each in advice)
