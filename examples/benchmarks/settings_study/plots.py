"""The plots of settings.md, from the rows of settings.csv."""

import json
import math
import statistics

from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from examples.benchmarks.settings_study.rows import at_rate, base_rows, label, order

BASELINE = "baseline"
MEASURES = {  # what a panel shows, and between which bounds
    "held-out loss, % more or less": (-30, 55),
    "in the style, points more or less": (-100, 60),
    "subject right, points more or less": (-100, 30),
}


def effects(rows: list[dict], base: dict) -> dict[str, list[tuple[str, tuple[float, float, float]]]]:
    """Setting -> of each of its runs the style, and how far it is from the mean of that style's runs with `base`.

    The three figures are those of `MEASURES`: per cent of the loss, and points of the two shares. Of the rates' section
    there is only what has the rate of `base`; as the first setting `base` itself; no tags, whose held-out pictures have
    other captions.
    """
    plain, found, rows = {}, {BASELINE: []}, at_rate(rows, base["learning_rate"])
    for row in base_rows(rows, base):
        plain.setdefault(row["style"], []).append(_figures(row))
    for section in dict.fromkeys(row["section"] for row in rows if row["section"] != "tags"):
        for row in sorted((row for row in rows if row["section"] == section), key=order):
            options = json.loads(row["options"])
            if row["style"] in plain:
                name = f"activation {options['activation']}" if section == "rate" else label(row)
                change = _change(_figures(row), [statistics.fmean(each) for each in zip(*plain[row["style"]])])
                found.setdefault(BASELINE if options == base else name, []).append((row["style"], change))
    return {name: runs for name, runs in found.items() if runs}


def _figures(row) -> tuple[float, float, float]:
    """Loss, and the two shares in per cent; of a run that has died the loss is ten times that of the model alone."""
    loss, most = float(row["val_loss"]), 10 * float(row["val_loss_base"])
    return (loss if loss < most else most), 100 * float(row["style_share"] or 0), 100 * float(row["subject_share"] or 0)


def _change(mine, plain) -> tuple[float, float, float]:
    return 100 * (mine[0] / plain[0] - 1), mine[1] - plain[1], mine[2] - plain[2]


def seed_deviation(found: dict, measure: int) -> float:
    """The standard deviation between the seeds of one setting and style: the mean of all, by their variances.

    Left out is what has lost half of the subjects, for such figures say nothing any more.
    """
    groups = {}
    for name, runs in found.items():
        for style, changes in runs:
            groups.setdefault((name, style), []).append(changes)
    kept = [group for group in groups.values() if len(group) > 1 and min(changes[2] for changes in group) > -50]
    variances = [statistics.variance(changes[measure] for changes in group) for group in kept]
    return math.sqrt(statistics.fmean(variances)) if variances else 0.0


def draw_effects(rows: list[dict], base: dict) -> Figure:
    """A panel for each measure, in it a dot for each run; shaded is what lies within two deviations of seeds."""
    found = effects(rows, base)
    figure = Figure(figsize=(13, 1.6 + 0.27 * len(found)), dpi=100, layout="constrained")
    panels = figure.subplots(1, len(MEASURES), sharey=True)
    styles = sorted({style for runs in found.values() for style, _ in runs})
    for measure, (panel, (title, (low, high))) in enumerate(zip(panels, MEASURES.items())):
        noise = 2 * seed_deviation(found, measure)
        panel.axvspan(-noise, noise, color="0.92", zorder=0, label="what another seed changes, mostly")
        for number, style in enumerate(styles):
            dots = [
                (min(max(changes[measure], low), high), line + 0.24 * (number - (len(styles) - 1) / 2))
                for line, runs in enumerate(found.values())
                for name, changes in runs
                if name == style
            ]
            panel.scatter(*zip(*dots), s=22, alpha=0.7, color=f"C{number}", label=style, linewidths=0, zorder=3)
        panel.axvline(0, color="0.4", linewidth=1)
        panel.set(title=title, xlim=(low - 2, high + 2))
        panel.grid(color="0.93")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(found)), list(found))
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside upper left", ncols=3)
    return figure


def draw_rates(rows: list[dict]) -> Figure:
    """Held-out loss and the share of right subjects over the rate, a line for each activation, a column for each style."""
    rows = [row for row in rows if row["section"] == "rate"]
    styles = sorted({row["style"] for row in rows})
    figure = Figure(figsize=(6 * len(styles), 7.5), dpi=100, layout="constrained")
    panels = figure.subplots(2, len(styles), squeeze=False, sharex=True, sharey="row")
    for (losses, subjects), style in zip(panels.T, styles):
        mine = [row for row in rows if row["style"] == style]
        for activation in sorted({json.loads(row["options"])["activation"] for row in mine}):
            figures = {}
            for row in mine:
                options = json.loads(row["options"])
                if options["activation"] == activation:
                    figures.setdefault(float(options["learning_rate"]), []).append(_figures(row))
            rates = sorted(figures)
            means = [[statistics.fmean(each) for each in zip(*figures[rate])] for rate in rates]
            losses.plot(rates, [mean[0] for mean in means], marker="o", markersize=5, label=activation)
            subjects.plot(rates, [mean[2] for mean in means], marker="o", markersize=5)
        base = float(mine[0]["val_loss_base"])
        losses.axhline(base, color="0.5", linestyle="--", linewidth=1, label="no hypernetwork")
        losses.set(xscale="log", yscale="log", title=style)
        subjects.set(xlabel="learning rate", ylim=(-4, 104))
    panels[0][0].set_ylabel("held-out loss after 150 steps")
    panels[1][0].set_ylabel("subject right, %")
    for axis in (panels[0][0].yaxis.set_major_formatter, panels[0][0].yaxis.set_minor_formatter):
        axis(ScalarFormatter())
    for panel in panels.flat:
        panel.grid(color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0][0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    return figure
