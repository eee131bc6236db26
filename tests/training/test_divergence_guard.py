"""What the guard sees, keeps and does, told by its documented rules."""

import json
import math

import pytest

from hypernet.training.divergence_guard import DivergenceGuard


def test_what_rises_clearly_three_times_in_a_row_has_died():
    guard = DivergenceGuard()
    assert [guard.check_loss(step, loss) for step, loss in enumerate([1.0, 0.5, 0.6, 0.52, 0.6, 0.6])] == [None] * 6
    assert (guard.best_loss, guard.best_step) == (0.5, 1)  # 0.52 is no clear rise, so the row begins anew
    reason = guard.check_loss(6, 0.6)
    assert "val_loss 0.6 has been clearly above its best 0.5 at step 1 for 3 evaluations" in reason


def test_a_slow_rise_from_the_best_counts_too():
    guard = DivergenceGuard()
    reasons = [guard.check_loss(step, 1.0 + 0.02 * step) for step in range(9)]
    assert reasons.index(next(filter(None, reasons))) == 5  # 1.06, 1.08, 1.10 are above 1.05


def test_it_goes_back_three_times_and_then_stops():
    guard = DivergenceGuard()
    factors = []
    for _ in range(3):
        assert guard.roll_back()
        factors.append(guard.learning_rate_factor)
    assert factors == pytest.approx([0.1, 0.01, 0.001]) and not guard.roll_back()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_answered_at_once_even_without_the_guard(value):
    guard = DivergenceGuard(watches_loss=False)
    assert guard.check_finite({"loss": 1.0, "effect/320": value}) == f"effect/320 is {value}"
    assert guard.check_loss(1, value) == f"val_loss is {value}" and guard.best_step is None
    assert guard.check_finite({"loss": 1.0}) is None


def test_switched_off_it_notes_the_best_and_says_nothing():
    guard = DivergenceGuard(watches_loss=False)
    assert [guard.check_loss(step, loss) for step, loss in enumerate([1.0, 9.0, 9.0, 9.0, 9.0])] == [None] * 5
    assert guard.best_step == 0 and not guard.should_end_with_best(1.0)


def test_what_ends_clearly_worse_or_worse_than_the_base_model_gives_way():
    guard = DivergenceGuard()
    for step, (loss, base, worse) in enumerate(
        [(1.0, 0.9, False), (0.5, 0.9, False), (0.52, 0.9, False), (0.53, 0.9, True)]
    ):
        guard.check_loss(step, loss)
        assert guard.should_end_with_best(base) is worse, loss
    assert guard.should_end_with_best(base=0.1)
    guard.check_loss(4, 0.51)
    assert guard.should_end_with_best(base=0.505) and not guard.should_end_with_best(base=0.6)


def test_a_new_rate_is_trusted():
    guard = DivergenceGuard()
    guard.roll_back(), guard.roll_back()
    guard.reset()
    assert (guard.learning_rate_factor, guard.rollbacks) == (1.0, 0)


def test_its_memory_goes_through_a_file():
    guard = DivergenceGuard()
    for step, loss in enumerate([1.0, 2.0]):
        guard.check_loss(step, loss)
    guard.roll_back()
    again = DivergenceGuard(watches_loss=False)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again == DivergenceGuard(False, guard.learning_rate_factor, 1, 1.0, 0, 0, 2.0, "")
    assert DivergenceGuard(**json.loads(json.dumps(DivergenceGuard().state_dict()))).best_loss == math.inf


def test_what_drowns_all_else_has_died_whatever_the_loss_says():
    guard = DivergenceGuard()
    assert guard.check_perturbation({"effect/320": 20.0, "effect/768": 0.01}) is None
    assert guard.check_perturbation({"effect/320": 0.1, "effect/768": 1.2e4}).startswith("effect/768 is 1.2e+04: it drowns")
    assert guard.check_perturbation({"effect/320": math.nan}) is not None
