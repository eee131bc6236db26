"""The losses of several runs over the steps, laid over one another."""

import math
import textwrap

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from examples.comparison.table import Group
from hypernet.training.loss_plot import smooth

MOST_NAMED = 14  # curves in the legend


def draw_curves(groups: list[Group]) -> Figure:
    """Held-out loss and training loss over the steps, a colour for each group, the best in the strongest."""
    _color(groups)
    held_out = any(result.held_out for group in groups for result in group.results)
    figure = Figure(
        figsize=(15 if held_out else 9, 5.2 + 0.11 * min(len(groups), MOST_NAMED)), dpi=110, layout="constrained"
    )
    axes = figure.subplots(1, 2 if held_out else 1, squeeze=False)[0]
    smoothed = any(_reach(result.losses) for group in groups for result in group.results)
    panels = [("held-out loss", "held_out")] * held_out
    panels.append(("training loss, smoothed" if smoothed else "training loss", "losses"))
    for axis, (title, name) in zip(axes, panels):
        for number, group in reversed(list(enumerate(groups))):
            for i, result in enumerate(group.results):
                steps, losses = [list(each) for each in zip(*getattr(result, name))] or ([], [])
                losses = smooth(losses, _reach(losses)) if name == "losses" else losses
                label = _label(group.name) if i == 0 and number < MOST_NAMED else None
                how = {"color": group.color, "linewidth": 1.6, "marker": "." if name == "held_out" else None}
                axis.plot(steps, losses, label=label, zorder=3 - number / len(groups), **how)
        axis.set(title=title, xlabel="step")
        axis.grid(color="0.9")
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_yscale("log")
        axis.set_xlim(left=0)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.yaxis.set_major_formatter(ScalarFormatter())
        axis.yaxis.set_minor_formatter(ScalarFormatter())
        _limit(axis, groups, name)
    base = next((r.val_loss_base for group in groups for r in group.results if r.val_loss_base), None)
    if base is not None:
        axes[0].axhline(base, color="0.5", linestyle="--", linewidth=1, label="without a hypernetwork", zorder=1)
    handles, labels = axes[0].get_legend_handles_labels()
    curves = len(labels) - (base is not None)  # they were drawn from the last to the best
    more = f"the best {MOST_NAMED} of {len(groups)}" if len(groups) > MOST_NAMED else None
    figure.legend(
        [*handles[:curves][::-1], *handles[curves:]],
        [*labels[:curves][::-1], *labels[curves:]],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        title=more,
    )
    return figure


def _label(name):
    """Fit for a legend, in which matplotlib takes $ for mathematics and hides what begins with an underscore."""
    return " " + textwrap.shorten(name, 80).replace("$", r"\$")


def _color(groups):
    few = len(groups) <= 10
    for number, group in enumerate(groups):
        group.color = colormaps["tab10"](number) if few else colormaps["viridis"](number / len(groups))


def _reach(losses) -> int:
    """Neighbours on each side for a line of an eighth of the values."""
    return len(losses) // 16


def _limit(axis, groups, name):
    """Let what has run away not flatten all others."""
    values = [value for group in groups for result in group.results for _, value in getattr(result, name)]
    values = [value for value in values if math.isfinite(value) and value > 0]
    if values:
        axis.set_ylim(0.9 * min(values), min(1.1 * max(values), 20 * min(values)))
