"""The lowest prompt fidelity of a good state, by the prompt fidelity of the style's own images."""

import types

import pytest
from accelerate import Accelerator

from hypernet.config import TrainingConfig
from hypernet.training.fidelity_limit import settle_fidelity_limit


@pytest.mark.parametrize(
    "own, wanted, limit, is_said",
    [
        (None, 0.6, 0.6, False),  # not measured
        (0.9, 0.6, 0.6, False),
        (0.6, 0.6, 0.6, False),
        (0.439, 0.6, 0.43, True),
        (0.21, 0.6, 0.21, True),
        (0.19, 0.6, 0.6, True),  # it would let ruined images pass
        (-0.3, 0.6, 0.6, True),
        (0.19, 0.3, 0.19, True),
    ],
)
def test_no_more_is_asked_for_than_the_style_itself_has(own, wanted, limit, is_said):
    config, folder = TrainingConfig(min_prompt_fidelity=wanted), types.SimpleNamespace(extras={})
    run = types.SimpleNamespace(config=config, accelerator=Accelerator(cpu=True), folder=folder)
    found, lines = settle_fidelity_limit(run, types.SimpleNamespace(own_fidelity=own))
    assert found == pytest.approx(limit) and bool(lines) == is_said


def test_without_scores_the_option_counts():
    run = types.SimpleNamespace(config=TrainingConfig(min_prompt_fidelity=0.7), accelerator=None)
    assert settle_fidelity_limit(run, None) == (0.7, [])
