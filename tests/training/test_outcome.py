"""What result.json says, and the summary that a run prints when it ends."""

import json
import math
import types
from pathlib import Path

import pytest

from hypernet.config import TrainingConfig
from hypernet.training.outcome import Outcome


def outcome(change, base_loss, best_loss, rollbacks=0, scores=None):
    """Return the outcome of a run that ended so; `best_loss` infinite: without a best state."""
    best_step = 9 if math.isfinite(best_loss) else None
    losses = {"best_loss": best_loss, "last_loss": best_loss, "best_step": best_step}
    monitor = types.SimpleNamespace(
        validation=None if math.isnan(base_loss) else "images",
        guard=types.SimpleNamespace(**losses, rollbacks=rollbacks, min_fidelity=0.6),
        base_loss=base_loss,
        change=change,
        config=TrainingConfig(),
        folder=types.SimpleNamespace(best="best", extras={}, guard_log=types.SimpleNamespace(path="guard.csv")),
        scores=None if scores is None else types.SimpleNamespace(values=scores),
        failures=types.SimpleNamespace(lines=[]),
        checkpointer=types.SimpleNamespace(hypernetwork=types.SimpleNamespace(config=types.SimpleNamespace(step=9))),
    )
    return Outcome(monitor)


def test_names_both_losses_and_the_best_state():
    (line,) = outcome(0.5, 2.0, 0.5).summary()
    assert "2 " in line and "0.5 " in line and str(Path("best")) in line
    assert outcome(0.5, math.nan, math.inf).summary() == []


def test_names_the_scores_that_were_measured():
    values = {"prompt_fidelity": 0.876, "style_distance": 0.123, "score": 0.77}
    fidelity, distance = outcome(0.5, math.nan, math.inf, scores=values).summary()
    assert "0.88" in fidelity and "0.12" in distance
    (distance,) = outcome(0.5, math.nan, math.inf, scores={"style_distance": 0.5}).summary()
    assert "0.50" in distance
    assert outcome(0.5, math.nan, math.inf, scores={}).summary() == []


def test_a_run_without_a_best_state_names_the_option_that_asks_for_more():
    (line,) = outcome(0.5, 2.0, math.inf).summary()
    assert "--min_prompt_fidelity 0.6" in line


def test_result_holds_numbers_or_null():
    values = {"prompt_fidelity": 0.9, "style_distance": 0.5, "score": 0.45}
    known = {"step": 9, "guard_returns": 1, "val_loss_base": 2.0}
    found = outcome(0.5, 2.0, 0.5, rollbacks=1, scores=values).result()
    assert found == {**known, "val_loss": 0.5, "best_val_loss": 0.5, "best_step": 9, **values}
    found = outcome(0.5, 2.0, math.inf, rollbacks=1, scores={}).result()
    assert found == {**known, "val_loss": None, "best_val_loss": None, "best_step": None}
    json.dumps(found, allow_nan=False)
    assert outcome(0.5, math.nan, math.inf).result() == {"step": 9, "guard_returns": 0}


@pytest.mark.parametrize("base_loss, best_loss", [(2.0, 1.9), (2.0, 2.0), (math.nan, math.inf), (2.0, math.inf)])
def test_says_that_next_to_nothing_was_learned(base_loss, best_loss):
    assert "--learning_rate" in outcome(0.001, base_loss, best_loss).summary()[-1]


def test_a_state_that_the_guard_has_restored_is_not_held_against_the_run():
    summary = outcome(0.001, 2.0, 1.0, rollbacks=1).summary()
    assert len(summary) == 2 and not any(line.startswith("note") for line in summary)
