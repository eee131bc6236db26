"""The loss plot: what it draws, and that user settings do not affect it."""

import math

import pytest
from matplotlib import rc_context

from hypernet.training.loss_plot import draw_losses, plot_losses


def test_plot_has_its_size_for_any_number_of_rows(recwarn):
    for count in (0, 1, 500):
        rows = [{"step": 10 * (i + 1), "loss": 1 / (i + 1)} for i in range(count)]
        assert plot_losses(rows, "$a_$b 水墨", [], [10]).size == (800, 450)
    first = {"step": 0, "val_loss": 1.2, "val_loss_base": 1.2}
    assert plot_losses([], "ink", [first]).size == (800, 450)
    assert plot_losses([], "ink", [], [], [{"step": 2, "prompt_fidelity": "", "style_distance": ""}]).size == (800, 650)
    with rc_context({"savefig.dpi": 300, "savefig.bbox": "tight", "text.usetex": True}):
        assert plot_losses(rows, "ink", [first]).size == (800, 450)
    assert not recwarn.list


def test_plot_shows_the_measured_values():
    losses = [0.5, 0.9, 0.4, math.nan, 0.3]
    rows = [{"step": str(10 * i), "loss": str(loss)} for i, loss in enumerate(losses, 1)]
    validation_rows = [
        {"step": step, "val_loss": loss, "val_loss_base": 1.2} for step, loss in [(0, 1.2), (30, 0.6), (60, 99)]
    ]
    (panel,) = draw_losses(rows, "ink", validation_rows, rollbacks=[40]).axes
    dots, smooth, validation, base, rollback = [line.get_xydata().tolist() for line in panel.lines]
    assert dots == [[10, 0.5], [20, 0.9], [30, 0.4], [50, 0.3]]
    assert [step for step, _ in smooth] == [10, 20, 30, 50]
    assert [loss for _, loss in smooth] == pytest.approx([0.5, 1.8 / 3, 1.6 / 3, 0.3])
    assert validation == [[0, 1.2], [30, 0.6], [60, 99]] and base == [[0, 1.2], [30, 1.2], [60, 1.2]]
    assert [x for x, _ in rollback] == [40, 40]
    assert panel.get_xlim() == (0, 60) and panel.get_ylim() == pytest.approx((0, 1.05 * 1.2))  # 99 is an outlier


def test_scores_have_a_panel_of_their_own():
    scores = [
        {"step": step, "prompt_fidelity": fidelity, "style_distance": distance}
        for step, fidelity, distance in [("0", "1.0", "0.9"), ("30", "", "0.5"), ("80", "0.7", "2.5")]
    ]
    above, below = draw_losses([{"step": "10", "loss": "0.5"}], "ink", scores=scores).axes
    assert [line.get_xydata().tolist() for line in below.lines] == [
        [[0, 1.0], [80, 0.7]],
        [[0, 0.9], [30, 0.5], [80, 2.5]],
    ]
    assert above.get_xlim() == below.get_xlim() == (0, 80) and below.get_ylim()[0] == 0
    assert below.get_xlabel() == "step" and not above.get_xlabel()
