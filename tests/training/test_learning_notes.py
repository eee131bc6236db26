"""Which runs have learned next to nothing, and which remedy is named."""

import math
import re

import pytest

from hypernet.config import TrainingConfig
from hypernet.training.learning_notes import FEW_STEPS, LEAST_CHANGE, NEXT_TO_NOTHING, learning_note


def note(change, rate="1e-5", steps=200, losses=(math.nan, math.inf)):
    return learning_note(TrainingConfig(learning_rate=rate, max_train_steps=steps), change, *losses)


@pytest.mark.parametrize(
    "change, rate, suggested",
    [(2.5e-5, "1e-7", 1e-3), (0.0008, "1e-6", 1e-4), (0.008, "1e-5", 1e-4), (0, "1e-9", 1e-3), (0.008, "9e-4", None)],
)
def test_names_a_rate_that_would_have_had_an_effect(change, rate, suggested):
    line = note(change, rate)
    rates = re.findall(r"--learning_rate of (\S+)", line)
    assert [float(found) for found in rates] == ([suggested] if suggested else []) and "\n" not in line
    assert suggested or re.search(r"--max_train_steps to 2000\b", line)


def test_the_rate_suits_the_optimizer():
    config = TrainingConfig(learning_rate="1e-3", max_train_steps=200, optimizer="SGD")
    assert re.search(r"--learning_rate of 0\.1\b", learning_note(config, 0.0015, math.nan, math.inf))


def test_a_schedule_is_to_be_raised_as_a_whole():
    assert "10 times" in note(0.008, "1e-5:100, 1e-6:200") and "--learning_rate" in note(0.008, "1e-5:100, 1e-6:200")


@pytest.mark.parametrize("change, steps", [(None, 200), (LEAST_CHANGE, 200), (2.0, 200), (0.0, FEW_STEPS - 1)])
def test_says_nothing_of_other_runs(change, steps):
    assert note(change, steps=steps) is None


@pytest.mark.parametrize(
    "change, best_loss, advice",
    [
        (0.3, 1.9, None),
        (0.3, 2 * (1 - NEXT_TO_NOTHING / 2), "lower --learning_rate"),
        (0.05, 2 * (1 - NEXT_TO_NOTHING / 2), "--max_train_steps"),
        (None, 2 * (1 - NEXT_TO_NOTHING / 2), "--max_train_steps"),
        (0.3, 2.0, "another --learning_rate"),
        (0.3, 2.1, "another --learning_rate"),
        (0.0001, 2.1, "--learning_rate of"),
    ],
)
def test_a_validation_loss_that_hardly_falls(change, best_loss, advice):
    line = note(change, losses=(2.0, best_loss))
    assert (line is None) if advice is None else advice in line
