"""The plots of settings.md, drawn from the rows of settings.csv."""

import json
import math
import statistics
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from examples.benchmarks.settings_study.rows import Row, at_learning_rate, baseline_rows, setting_label, sort_key

BASELINE = "baseline"
MEASURES = {  # with the limits of its axis
    "validation loss, %": (-30, 55),
    "in the style, points": (-100, 60),
    "correct subject, points": (-100, 30),
}

Figures = tuple[float, float, float]  # one per measure
Changes = dict[str, list[tuple[str, Figures]]]  # setting -> style and figures of each run


def find_changes(rows: list[Row], base: dict[str, Any]) -> Changes:
    """Return how far each run is from the mean of the runs in its style with the options `base`.

    The figures are those of `MEASURES`: percent of the loss, and percentage points of the two shares. `base` itself is the
    first setting. Of the section "rate" only the learning rate of `base` counts. The section "tags" is left out, because
    its validation images have other captions.
    """
    plain: dict[str, list[Figures]] = {}
    found: Changes = {BASELINE: []}
    rows = at_learning_rate(rows, base["learning_rate"])
    for row in baseline_rows(rows, base):
        plain.setdefault(row["style"], []).append(_figures(row))
    for section in dict.fromkeys(row["section"] for row in rows if row["section"] != "tags"):
        for row in sorted((row for row in rows if row["section"] == section), key=sort_key):
            options = json.loads(row["options"])
            if row["style"] in plain:
                name = f"activation {options['activation']}" if section == "rate" else setting_label(row)
                change = _change(_figures(row), _means(plain[row["style"]]))
                found.setdefault(BASELINE if options == base else name, []).append((row["style"], change))
    return {name: runs for name, runs in found.items() if runs}


def _figures(row: Row) -> Figures:
    """Return the loss, at most ten times that of the base model, and the two shares in percent."""
    loss, limit = float(row["val_loss"]), 10 * float(row["val_loss_base"])
    loss = loss if loss < limit else limit  # also if it is not a number
    return loss, 100 * float(row["style_share"] or 0), 100 * float(row["subject_share"] or 0)


def _means(figures: list[Figures]) -> Figures:
    loss, style, subject = (statistics.fmean(values) for values in zip(*figures))
    return loss, style, subject


def _change(figures: Figures, base: Figures) -> Figures:
    return 100 * (figures[0] / base[0] - 1), figures[1] - base[1], figures[2] - base[2]


def seed_deviation(changes: Changes, measure: int) -> float:
    """Return the standard deviation between seeds, from the mean of the variances of each setting and style.

    Settings that lost half of the subjects are left out: their figures are meaningless.
    """
    groups: dict[tuple[str, str], list[Figures]] = {}
    for name, runs in changes.items():
        for style, figures in runs:
            groups.setdefault((name, style), []).append(figures)
    kept = [group for group in groups.values() if len(group) > 1 and min(figures[2] for figures in group) > -50]
    variances = [statistics.variance(figures[measure] for figures in group) for group in kept]
    return math.sqrt(statistics.fmean(variances)) if variances else 0.0


def draw_changes(rows: list[Row], base: dict[str, Any]) -> Figure:
    """Draw a panel per measure with a dot per run; two standard deviations between seeds are shaded."""
    changes = find_changes(rows, base)
    figure = Figure(figsize=(13, 1.6 + 0.27 * len(changes)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    styles = sorted({style for runs in changes.values() for style, _ in runs})
    for measure, (panel, (title, (low, high))) in enumerate(zip(panels, MEASURES.items())):
        noise = 2 * seed_deviation(changes, measure)
        panel.axvspan(-noise, noise, color="0.92", zorder=0, label="typical difference between seeds")
        for number, style in enumerate(styles):
            dots = [
                (min(max(figures[measure], low), high), line + 0.24 * (number - (len(styles) - 1) / 2))
                for line, runs in enumerate(changes.values())
                for name, figures in runs
                if name == style
            ]
            panel.scatter(*zip(*dots), s=22, alpha=0.7, color=f"C{number}", label=style, linewidths=0, zorder=3)
        panel.axvline(0, color="0.4", linewidth=1)
        panel.set(title=title.replace(", ", ": change in "), xlim=(low - 2, high + 2))
        panel.grid(color="0.93")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(changes)), list(changes))
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=3)
    return figure


def draw_learning_rates(rows: list[Row]) -> Figure:
    """Draw validation loss and share of correct subjects over the learning rate.

    A line per activation, a column per style.
    """
    rows = [row for row in rows if row["section"] == "rate"]
    styles = sorted({row["style"] for row in rows})
    figure = Figure(figsize=(6 * len(styles), 7.5), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(styles), squeeze=False, sharex=True, sharey="row")
    for (losses, subjects), style in zip(panels.T, styles):
        in_style = [row for row in rows if row["style"] == style]
        for activation in sorted({json.loads(row["options"])["activation"] for row in in_style}):
            figures: dict[float, list[Figures]] = {}
            for row in in_style:
                options = json.loads(row["options"])
                if options["activation"] == activation:
                    figures.setdefault(float(options["learning_rate"]), []).append(_figures(row))
            learning_rates = sorted(figures)
            means = [_means(figures[learning_rate]) for learning_rate in learning_rates]
            losses.plot(learning_rates, [mean[0] for mean in means], marker="o", markersize=5, label=activation)
            subjects.plot(learning_rates, [mean[2] for mean in means], marker="o", markersize=5)
        base = float(in_style[0]["val_loss_base"])
        losses.axhline(base, color="0.5", linestyle="--", linewidth=1, label="base model")
        losses.set(xscale="log", yscale="log", title=style)
        subjects.set(xlabel="learning rate", ylim=(-4, 104))
    panels[0][0].set_ylabel("validation loss after 150 steps")
    panels[1][0].set_ylabel("correct subject, %")
    panels[0][0].yaxis.set_major_formatter(ScalarFormatter())
    panels[0][0].yaxis.set_minor_formatter(ScalarFormatter())
    for panel in panels.flat:
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure
