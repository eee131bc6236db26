"""The divergence guard against its documented rules."""

import json
import math

import pytest

from hypernet.training.divergence_guard import DivergenceGuard


def test_three_clear_rises_in_a_row_are_divergence():
    guard = DivergenceGuard()
    assert [guard.check_evaluation(step, loss) for step, loss in enumerate([1.0, 0.5, 0.6, 0.52, 0.6, 0.6])] == [
        None
    ] * 6
    assert (guard.best_loss, guard.best_step) == (0.5, 1)  # 0.52 is not a clear rise, so counting restarts
    reason = guard.check_evaluation(6, 0.6)
    assert "val_loss 0.6 " in reason and " 0.5 at step 1" in reason


def test_slow_rise_is_measured_from_the_best():
    guard = DivergenceGuard()
    reasons = [guard.check_evaluation(step, 1.0 + 0.02 * step) for step in range(9)]
    assert reasons.index(next(filter(None, reasons))) == 5  # 1.06, 1.08, 1.10 are above 1.05


def test_rolls_back_three_times_then_gives_up():
    guard = DivergenceGuard()
    factors = []
    for _ in range(3):
        assert guard.roll_back()
        factors.append(guard.learning_rate_factor)
    assert factors == pytest.approx([0.1, 0.01, 0.001]) and not guard.roll_back()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_values_are_divergence_even_without_the_guard(value):
    guard = DivergenceGuard(watches_loss=False)
    assert "effect/320" in guard.check_finite({"loss": 1.0, "effect/320": value})
    assert "val_loss" in guard.check_evaluation(1, value) and guard.best_step is None
    assert guard.check_finite({"loss": 1.0}) is None


def test_disabled_guard_only_records_the_best():
    guard = DivergenceGuard(watches_loss=False)
    assert [guard.check_evaluation(step, loss) for step, loss in enumerate([1.0, 9.0, 9.0, 9.0, 9.0])] == [None] * 5
    assert guard.best_step == 0 and not guard.should_end_with_best(1.0)


def test_ends_with_the_best_if_the_last_is_clearly_worse_or_worse_than_the_base_model():
    guard = DivergenceGuard()
    cases = [(1.0, 0.9, False), (0.5, 0.9, False), (0.52, 0.9, False), (0.53, 0.9, True)]
    for step, (loss, base_loss, worse) in enumerate(cases):
        guard.check_evaluation(step, loss)
        assert guard.should_end_with_best(base_loss) is worse, loss
    assert guard.should_end_with_best(base_loss=0.1)
    guard.check_evaluation(4, 0.51)
    assert guard.should_end_with_best(base_loss=0.505) and not guard.should_end_with_best(base_loss=0.6)


def test_reset_restores_learning_rate_and_rollbacks():
    guard = DivergenceGuard()
    guard.roll_back()
    guard.roll_back()
    guard.reset()
    assert (guard.learning_rate_factor, guard.rollbacks) == (1.0, 0)


def test_state_survives_json():
    guard = DivergenceGuard(validation_fingerprint="a1")
    for step, loss in enumerate([1.0, 2.0]):
        guard.check_evaluation(step, loss)
    guard.roll_back()
    state = json.loads(json.dumps(guard.state_dict()))
    assert {"returns", "rate_factor", "held_out"} <= state.keys()  # as in checkpoints of earlier versions
    loaded = DivergenceGuard(watches_loss=False)
    loaded.load_state_dict(state)
    assert loaded == DivergenceGuard(
        watches_loss=False,
        learning_rate_factor=guard.learning_rate_factor,
        rollbacks=1,
        best_loss=1.0,
        best_step=0,
        worse=0,
        last_loss=2.0,
        validation_fingerprint="a1",
        has_evaluated=True,
    )
    fresh = DivergenceGuard()
    fresh.load_state_dict(json.loads(json.dumps(DivergenceGuard().state_dict())))
    assert fresh == DivergenceGuard() and fresh.best_loss == math.inf


def test_overwhelming_perturbation_is_divergence_whatever_the_loss():
    guard = DivergenceGuard()
    assert guard.check_perturbation({"effect/320": 20.0, "effect/768": 0.01}) is None
    assert "effect/768" in guard.check_perturbation({"effect/320": 0.1, "effect/768": 1.2e4})
    assert guard.check_perturbation({"effect/320": math.nan}) is not None


def evaluate(guard, *fidelities, first=0):
    """Record evaluations with ever lower losses and these prompt fidelities; return why the run has diverged after each."""
    return [guard.check_evaluation(step, 1 / (1 + step), fidelity) for step, fidelity in enumerate(fidelities, first)]


def test_a_state_that_shows_too_little_of_the_prompts_is_not_the_best():
    guard = DivergenceGuard(min_fidelity=0.6)
    evaluate(guard, 0.9, 0.6, 0.59)
    assert (guard.best_step, guard.best_loss, guard.best_fidelity) == (1, 0.5, 0.6)
    assert guard.last_loss == pytest.approx(1 / 3) and guard.last_fidelity == 0.59
    assert guard.should_end_with_best(base_loss=1.0)
    guard.restore_best()
    assert (guard.last_loss, guard.last_fidelity) == (0.5, 0.6) and not guard.should_end_with_best(base_loss=1.0)
    evaluate(guard, None, first=3)  # not measured
    assert guard.best_step == 3 and not guard.should_end_with_best(base_loss=1.0)


def test_the_first_loss_of_subjects_lowers_the_learning_rate_to_a_third():
    guard = DivergenceGuard(min_fidelity=0.6)
    factors = []
    for first in (0, 3, 6):
        reasons = evaluate(guard, 1.0, 0.5, 0.5, first=first)
        assert reasons[:2] == [None, None] and reasons[2] and guard.roll_back()
        factors.append(guard.learning_rate_factor)
    assert factors == pytest.approx([1 / 3, 1 / 30, 1 / 300])
    guard.reset()
    evaluate(guard, 1.0, 0.5, 0.7, first=9)
    assert guard.roll_back() and guard.learning_rate_factor == pytest.approx(0.1)  # another reason, such as a NaN


def test_two_low_fidelities_in_a_row_are_divergence():
    guard = DivergenceGuard(min_fidelity=0.6)
    assert evaluate(guard, 1.0, 0.5, 0.7, 0.5) == [None] * 4
    (reason,) = evaluate(guard, 0.4, first=4)
    assert "prompt_fidelity 0.40" in reason and guard.best_step == 2
    assert guard.roll_back() and evaluate(guard, 0.5, first=5) == [None]  # counting restarts


@pytest.mark.parametrize("options", [{"watches_loss": False, "min_fidelity": 0.6}, {"min_fidelity": 0.0}])
def test_low_fidelities_without_guard_or_limit_are_no_divergence(options):
    guard = DivergenceGuard(**options)
    assert evaluate(guard, 1.0, *[0.0] * 5) == [None] * 6 and not guard.should_end_with_best(base_loss=1.0)
    assert guard.best_step == (0 if options["min_fidelity"] else 5)


def test_without_any_state_that_shows_the_prompts_there_is_no_best_and_nothing_to_end_with():
    guard = DivergenceGuard(min_fidelity=0.6)
    assert evaluate(guard, 0.1, 0.2, 0.1, 0.0) == [None] * 4
    assert guard.best_step is None and guard.has_evaluated and not guard.should_end_with_best(base_loss=0.0)


def test_a_best_state_below_a_raised_limit_is_forgotten():
    guard = DivergenceGuard(min_fidelity=0.6)
    evaluate(guard, 1.0, 0.7, 0.5)
    state = json.loads(json.dumps(guard.state_dict()))
    for limit in (0.0, 0.7, 0.71):
        loaded = DivergenceGuard(min_fidelity=limit)
        loaded.load_state_dict(state)
        kept = limit <= 0.7
        assert (loaded.best_step, loaded.best_fidelity, loaded.low) == ((1, 0.7, 1) if kept else (None, None, 0))
        assert loaded.has_evaluated is kept and loaded.min_fidelity == limit


def test_a_state_of_an_earlier_version_is_loaded():
    guard = DivergenceGuard()
    guard.check_evaluation(4, 0.5)
    state = guard.state_dict()
    for name in ("min_fidelity", "low", "last_fidelity", "best_fidelity", "has_evaluated"):
        del state[name]
    loaded = DivergenceGuard(min_fidelity=0.6)
    loaded.load_state_dict(state)
    assert (loaded.best_step, loaded.has_evaluated, loaded.low, loaded.best_fidelity) == (4, True, 0, None)
