"""The plots of a run's page."""

from hypernet.training.run_curves import draw_panels

LOSSES = [{"step": "10", "loss": "0.5", "learn_rate": "0.001"}]
SCORES = [
    {"step": "0", "prompt_fidelity": "1.0", "style_distance": "0.9", "score": "0.1"},
    {"step": "10", "prompt_fidelity": "", "style_distance": "0.5", "score": ""},
]


def test_scores_are_curves_of_one_plot():
    panels = draw_panels(LOSSES, [], [], SCORES)
    (curves,) = [panel["curves"] for panel in panels if any("fidelity" in curve["label"] for curve in panel["curves"])]
    assert [(curve["steps"], curve["values"]) for curve in curves] == [([0], [1.0]), ([0, 10], [0.9, 0.5])]


def test_without_scores_the_plots_are_those_of_the_losses():
    panels = draw_panels(LOSSES, [], [])
    assert [curve["label"] for panel in panels for curve in panel["curves"]] == ["training", "learning rate"]
    assert len(draw_panels(LOSSES, [], [], SCORES)) == len(panels) + 1
