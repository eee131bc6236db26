"""Plot the losses of all runs of a comparison over their steps, and color the groups of runs."""

import math
import textwrap

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, ScalarFormatter

from examples.comparison.groups import Group
from examples.comparison.ranking import Ranking
from hypernet.training.loss_plot import smooth

HUES = [hue for hue in range(10) if hue != 7]  # of tab20, without gray
COLORS = [colormaps["tab20"](2 * hue + pale) for pale in (0, 1) for hue in HUES]
GRAY = (0.8, 0.8, 0.8, 1.0)
MAX_LABELS = len(COLORS)  # groups in a legend


def color_groups(groups: list[Group]) -> None:
    """Give each of the first groups a color of its own, and all others gray."""
    for number, group in enumerate(groups):
        group.color = COLORS[number] if number < len(COLORS) else GRAY


def draw_curves(ranking: Ranking) -> Figure:
    """Plot validation loss and training loss in the groups' colors, the first group on top."""
    groups = ranking.groups
    has_validation = any(result.val_losses for group in groups for result in group.results)
    height = 5.2 + 0.11 * min(len(groups), MAX_LABELS)
    figure = Figure(figsize=(15 if has_validation else 9, height), dpi=110, layout="constrained")
    fields = [*(["val_losses"] * has_validation), "losses"]
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for panel, field in zip(panels, fields):
        _draw_panel(panel, groups, field)
    handles, labels = panels[0].get_legend_handles_labels()
    if has_validation:
        _draw_base_losses(panels[0], ranking)
    figure.legend(
        handles[::-1],  # drawn from last to first
        labels[::-1],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        title=legend_title(groups),
    )
    return figure


def _draw_base_losses(panel: Axes, ranking: Ranking) -> None:
    """Draw a line at the base model's loss on each validation set, with its name at the right end."""
    for each in ranking.sets:
        if each.base_loss is not None:
            name = f"base model, set {each.number}" if len(ranking.sets) > 1 else "base model"
            panel.axhline(each.base_loss, color="0.5", linestyle="--", linewidth=1, zorder=1)
            where = (1, each.base_loss)
            panel.annotate(
                name,
                where,
                (-4, 4),
                xycoords=panel.get_yaxis_transform(),
                textcoords="offset points",
                ha="right",
                color="0.4",
                fontsize=9,
            )


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
                label=legend_label(number, group) if i == 0 and number < MAX_LABELS else None,
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


def legend_title(groups: list[Group]) -> str | None:
    """Return the title of a legend that does not name all groups."""
    return f"the first {MAX_LABELS} of {len(groups)}, in the order of the table" if len(groups) > MAX_LABELS else None


def legend_label(number: int, group: Group, width: int = 80) -> str:
    """Return a group's number in the table (from 0) and name; matplotlib would read $ as math."""
    return f"{number + 1}  {textwrap.shorten(group.name, width)}".replace("$", r"\$")
