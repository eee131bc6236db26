"""What the guard sees, keeps and does, told by its documented rules."""

import json
import math

import pytest

from hypernet.training.divergence_guard import Guard


def test_what_rises_clearly_three_times_in_a_row_has_died():
    guard = Guard()
    assert [guard.judge_loss(step, loss) for step, loss in enumerate([1.0, 0.5, 0.6, 0.52, 0.6, 0.6])] == [None] * 6
    assert (guard.best_loss, guard.best_step) == (0.5, 1)  # 0.52 is no clear rise, so the row begins anew
    reason = guard.judge_loss(6, 0.6)
    assert "val_loss 0.6 has been clearly above its best 0.5 at step 1 for 3 evaluations" in reason


def test_a_slow_rise_from_the_best_counts_too():
    guard = Guard()
    reasons = [guard.judge_loss(step, 1.0 + 0.02 * step) for step in range(9)]
    assert reasons.index(next(filter(None, reasons))) == 5  # 1.06, 1.08, 1.10 are above 1.05


def test_it_goes_back_three_times_and_then_stops():
    guard = Guard()
    factors = []
    for _ in range(3):
        assert guard.go_back()
        factors.append(guard.rate_factor)
    assert factors == pytest.approx([0.1, 0.01, 0.001]) and not guard.go_back()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_answered_at_once_even_without_the_guard(value):
    guard = Guard(watches_loss=False)
    assert guard.judge_values({"loss": 1.0, "effect/320": value}) == f"effect/320 is {value}"
    assert guard.judge_loss(1, value) == f"val_loss is {value}" and guard.best_step is None
    assert guard.judge_values({"loss": 1.0}) is None


def test_switched_off_it_notes_the_best_and_says_nothing():
    guard = Guard(watches_loss=False)
    assert [guard.judge_loss(step, loss) for step, loss in enumerate([1.0, 9.0, 9.0, 9.0, 9.0])] == [None] * 5
    assert guard.best_step == 0 and not guard.ends_worse(1.0)


def test_what_ends_clearly_worse_or_worse_than_the_base_model_gives_way():
    guard = Guard()
    for step, (loss, base, worse) in enumerate(
        [(1.0, 0.9, False), (0.5, 0.9, False), (0.52, 0.9, False), (0.53, 0.9, True)]
    ):
        guard.judge_loss(step, loss)
        assert guard.ends_worse(base) is worse, loss
    assert guard.ends_worse(base=0.1)
    guard.judge_loss(4, 0.51)
    assert guard.ends_worse(base=0.505) and not guard.ends_worse(base=0.6)


def test_a_new_rate_is_trusted():
    guard = Guard()
    guard.go_back(), guard.go_back()
    guard.trust()
    assert (guard.rate_factor, guard.returns) == (1.0, 0)


def test_its_memory_goes_through_a_file():
    guard = Guard()
    for step, loss in enumerate([1.0, 2.0]):
        guard.judge_loss(step, loss)
    guard.go_back()
    again = Guard(watches_loss=False)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    assert again == Guard(False, guard.rate_factor, 1, 1.0, 0, 0, 2.0, "")
    assert Guard(**json.loads(json.dumps(Guard().state_dict()))).best_loss == math.inf


def test_what_drowns_all_else_has_died_whatever_the_loss_says():
    guard = Guard()
    assert guard.judge_effect({"effect/320": 20.0, "effect/768": 0.01}) is None
    assert guard.judge_effect({"effect/320": 0.1, "effect/768": 1.2e4}).startswith("effect/768 is 1.2e+04: it drowns")
    assert guard.judge_effect({"effect/320": math.nan}) is not None
