"""Plot the losses of all runs of a comparison over their steps."""

import math
import textwrap

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from examples.comparison.table import Group
from hypernet.training.loss_plot import smooth

MAX_LABELS = 14  # curves in the legend


def color_groups(groups: list[Group]) -> None:
    """Give each group its color: distinct ones for up to ten groups, else a gradient from best to worst."""
    few = len(groups) <= 10
    for number, group in enumerate(groups):
        group.color = colormaps["tab10"](number) if few else colormaps["viridis"](number / len(groups))


def draw_curves(groups: list[Group]) -> Figure:
    """Plot validation loss and training loss in the groups' colors, the best group on top."""
    has_validation = any(result.val_losses for group in groups for result in group.results)
    height = 5.2 + 0.11 * min(len(groups), MAX_LABELS)
    figure = Figure(figsize=(15 if has_validation else 9, height), dpi=110, layout="constrained")
    fields = [*(["val_losses"] * has_validation), "losses"]
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for panel, field in zip(panels, fields):
        _draw_panel(panel, groups, field)
    base = next((r.val_loss_base for group in groups for r in group.results if r.val_loss_base), None)
    if base is not None:
        panels[0].axhline(base, color="0.5", linestyle="--", linewidth=1, label="base model", zorder=1)
    handles, labels = panels[0].get_legend_handles_labels()
    curves = len(labels) - (base is not None)  # drawn from worst to best
    figure.legend(
        [*handles[:curves][::-1], *handles[curves:]],
        [*labels[:curves][::-1], *labels[curves:]],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        title=f"the best {MAX_LABELS} of {len(groups)}" if len(groups) > MAX_LABELS else None,
    )
    return figure


def _draw_panel(panel: Axes, groups: list[Group], field: str) -> None:
    """Plot one kind of loss, a field of `Result`, on a logarithmic axis."""
    is_training = field == "losses"
    smoothed = is_training and any(_neighbors(result.losses) for group in groups for result in group.results)
    for number, group in reversed(list(enumerate(groups))):
        for i, result in enumerate(group.results):
            steps, losses = [list(column) for column in zip(*getattr(result, field))] or ([], [])
            panel.plot(
                steps,
                smooth(losses, _neighbors(losses)) if is_training else losses,
                label=_legend_label(group.name) if i == 0 and number < MAX_LABELS else None,
                color=group.color,
                linewidth=1.6,
                marker=None if is_training else ".",
                zorder=3 - number / len(groups),
            )
    title = "training loss" if is_training else "validation loss"
    panel.set(title=f"{title}, smoothed" if smoothed else title, xlabel="step")
    panel.grid(color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    panel.set_yscale("log")
    panel.set_xlim(left=0)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.yaxis.set_major_formatter(ScalarFormatter())
    panel.yaxis.set_minor_formatter(ScalarFormatter())
    losses = [loss for group in groups for result in group.results for _, loss in getattr(result, field)]
    losses = [loss for loss in losses if math.isfinite(loss) and loss > 0]
    if losses:  # a run that has diverged must not flatten the others
        panel.set_ylim(0.9 * min(losses), min(1.1 * max(losses), 20 * min(losses)))


def _neighbors(losses: list) -> int:
    """Return how many neighbors on each side to smooth over: together an eighth of the curve."""
    return len(losses) // 16


def _legend_label(name: str) -> str:
    """Escape a name for matplotlib, which reads $ as math and hides labels that start with an underscore."""
    return " " + textwrap.shorten(name, 80).replace("$", r"\$")
