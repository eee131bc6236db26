"""The plots of settings.md, drawn from the rows of settings.csv."""

import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.benchmarks.settings_study.rows import Row, figures_of, runs_of
from examples.benchmarks.settings_study.settings import BASE, BASELINE, setting_label, unique_settings

Measures = dict[str, str]  # figure -> heading
OWN: Measures = {
    "loss_ratio": "validation loss /\nbase model's",
    "style_distance": "style distance",
    "prompt_fidelity": "prompt fidelity",
    "score": "score",
}
SEEN: Measures = {"style_share": "in the style", "subject_share": "correct subject"}


def with_shown_figures(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with the validation loss relative to the base model's, at most 2, and distances of at most 1.5."""
    found = []
    for row in rows:
        loss, base = (row.figures.get(name) for name in ("val_loss", "val_loss_base"))
        ratio = {"loss_ratio": min(loss / base, 2.0)} if loss is not None and base else {}
        distance = row.figures.get("style_distance")
        distances = {} if distance is None else {"style_distance": min(distance, 1.5)}
        found.append(Row(row.model, row.style, row.setting, row.seed, {**row.figures, **distances, **ratio}))
    return found


def draw_settings(rows: Sequence[Row]) -> Figure:
    """Draw a panel per measure and a line per setting, with a dot per run.

    Two standard deviations of the baseline's runs are shaded, in the style that has the most runs.
    """
    rows = with_shown_figures(rows)
    settings = [setting for setting in unique_settings() if any(row.setting == setting for row in rows)]
    styles = list(dict.fromkeys(row.style for row in rows))
    main = max(styles, key=lambda style: sum(row.style == style for row in rows))
    figure = Figure(figsize=(16, 1.6 + 0.24 * len(settings)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(OWN) + len(SEEN), sharey=True, squeeze=False)[0]
    for panel, (name, heading) in zip(panels, {**OWN, **SEEN}.items()):
        usual = figures_of(runs_of(rows, main, BASELINE), name)
        if len(usual) > 1:
            middle, spread = statistics.fmean(usual), 2 * statistics.stdev(usual)
            panel.axvspan(middle - spread, middle + spread, color="0.92", zorder=0, label="runs of the baseline")
        for number, style in enumerate(styles):
            dots = [
                (value, line + 0.24 * (number - (len(styles) - 1) / 2))
                for line, setting in enumerate(settings)
                for value in figures_of(runs_of(rows, style, setting), name)
            ]
            if dots:
                panel.scatter(*zip(*dots), s=18, alpha=0.7, color=f"C{number}", label=style, linewidths=0, zorder=3)
        panel.set_title(heading, fontsize=10)
        _tidy(panel)
    panels[0].set_yticks(range(len(settings)), [setting_label(setting) for setting in settings])
    panels[0].invert_yaxis()
    figure.legend(*panels[-1].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=4)
    return figure


def draw_learning_rates(rows: Sequence[Row]) -> Figure:
    """Draw what the runs themselves measure over the learning rate: mean and single runs, a color per style."""
    rows = [row for row in with_shown_figures(rows) if row.setting.keys() <= {"learning_rate"}]
    rows = [row for row in rows if ":" not in row.setting.get("learning_rate", "")]  # no schedules
    figure = Figure(figsize=(16, 3.6), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(OWN) + 1, squeeze=False)[0]
    for panel, (name, heading) in zip(panels, {**OWN, "subject_share": SEEN["subject_share"]}.items()):
        for number, style in enumerate(dict.fromkeys(row.style for row in rows)):
            figures: dict[float, list[float]] = {}
            for row in rows:
                if row.style == style and name in row.figures:
                    rate = float({**BASE, **row.setting}["learning_rate"])
                    figures.setdefault(rate, []).append(row.figures[name])
            rates = sorted(figures)
            panel.plot(rates, [statistics.fmean(figures[rate]) for rate in rates], color=f"C{number}", label=style)
            dots = [(rate, value) for rate in rates for value in figures[rate]]
            if dots:
                panel.scatter(*zip(*dots), s=14, color=f"C{number}", linewidths=0)
        panel.set(xscale="log", xlabel="learning rate")
        panel.set_title(heading, fontsize=10)
        _tidy(panel)
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=4)
    return figure


def draw_agreement(rows: Sequence[Row]) -> Figure:
    """Draw what the runs measure against what the classifier sees, with a dot per run and a color per style."""
    rows, figure = with_shown_figures(rows), Figure(figsize=(10, 4.6), dpi=100, layout="constrained")
    for panel, names in zip(figure.subplots(1, 2), zip(("style_distance", "prompt_fidelity"), SEEN)):
        for number, style in enumerate(dict.fromkeys(row.style for row in rows)):
            own = [row for row in rows if row.style == style and set(names) <= row.figures.keys()]
            panel.scatter(
                *(figures_of(own, name) for name in names),
                s=18,
                alpha=0.6,
                color=f"C{number}",
                label=style,
                linewidths=0,
            )
        panel.set(xlabel=OWN[names[0]], ylabel=f"{SEEN[names[1]]}, as the classifier sees it")
        _tidy(panel)
        panel.legend(frameon=False)
    return figure


def _tidy(panel: Axes) -> None:
    panel.grid(color="0.93")
    panel.spines[["top", "right"]].set_visible(False)
