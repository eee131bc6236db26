"""Plot style distance against prompt fidelity of all runs of a comparison, with the Pareto front."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from examples.comparison.curves import MAX_LABELS, legend_label, legend_title
from examples.comparison.groups import Group, Standing
from examples.comparison.ranking import Ranking
from hypernet.utils.errors import counted

LOWEST, HIGHEST = -0.1, 1.2  # of both axes; what lies beyond is drawn at the edge, as a triangle
COLUMNS = 2  # of panels
# Where the number of a group may stand: offsets of its center from the point, the best first. All in font points
OFFSETS = [(x, y) for distance in (12, 22, 32) for x, y in ((-distance, distance * 0.7), (-distance, 0), (0, distance))]
PANEL_SIZE = (500, 350)  # roughly
LABEL_SIZE = 10.0
Numbered = tuple[int, Group]  # a group and its place in the table, from 0
Point = tuple[float, float]


def draw_scatter(ranking: Ranking) -> Figure:
    """Plot a point per group, with ± the standard deviation over its seeds; a panel for each validation set.

    Groups that are alone in their validation set share a panel without a front. At least one group has both figures.
    """
    shown = [(i, group) for i, group in enumerate(ranking.groups) if group.has_scores]
    panels: dict[str, list[Numbered]] = {}
    for i, group in shown:
        number = group.validation_set.number if group.validation_set else 0
        title = "Prompt fidelity over style distance" if len(ranking.sets) == 1 else f"validation set {number}"
        title = "alone in their validation sets, not comparable" if ranking.is_alone(group) else title
        panels.setdefault(title, []).append((i, group))
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(11 if len(panels) == 1 else 15, 6 * rows), dpi=110, layout="constrained")
    axes = list(figure.subplots(rows, min(COLUMNS, len(panels)), squeeze=False).flat)
    for panel, (title, members) in zip(axes, panels.items()):
        panel.set_title(title)
        _draw_panel(panel, members, ranking.min_fidelity, has_front=not ranking.is_alone(members[0][1]))
    for panel in axes[len(panels) :]:
        panel.remove()
    named = shown[:MAX_LABELS]
    figure.legend(
        [Line2D([], [], linestyle="", marker="o", color=group.color) for _, group in named],
        [legend_label(i, group, width=48) for i, group in named],
        loc="outside right upper",
        frameon=False,
        title=legend_title([group for _, group in shown]),
    )
    if left_out := sum(not result.has_scores for result in ranking.results):
        text = f"Left out: {counted(left_out, 'run')} without these figures."
        figure.supxlabel(text, x=0.01, ha="left", fontsize=10, color="0.4")
    return figure


def _draw_panel(panel: Axes, members: Sequence[Numbered], min_fidelity: float, has_front: bool) -> None:
    """Plot groups, the front of those that were measured on the same images, and the base model for orientation."""
    places = [_place(group) for _, group in members]
    lefts, bottoms = zip(*places)
    panel.set_xlim(min(0.85, *lefts) - 0.08, max(1.12, *lefts) + 0.03)
    panel.set_ylim(min(0.85, min_fidelity or 1, *bottoms) - 0.08, max(1, *bottoms) + 0.1)
    panel.set_xlabel("style distance    (0: like your images, 1: like the base model's)")
    panel.set_ylabel("prompt fidelity    (1: like the base model, 0: none)")
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_locator(MultipleLocator(0.1))
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)
    panel.plot(1, 1, marker="D", color="0.6", markersize=7, zorder=2)
    _write(panel, "base model", (1, 1), (8, -4), ha="left", color="0.4", fontsize=9)
    if min_fidelity:
        panel.axhspan(panel.get_ylim()[0], min_fidelity, color="tab:red", alpha=0.07, linewidth=0, zorder=0)
        text, where = f"below --min_prompt_fidelity {min_fidelity:g}", (panel.get_xlim()[1], min_fidelity)
        _write(panel, text, where, (-6, -6), ha="right", va="top", color="tab:red", fontsize=9)
    front = sorted(_place(group) for _, group in members if group.standing == Standing.FRONT)
    if has_front and front:
        steps = [(front[0][0], min_fidelity or LOWEST - 1), *front, (HIGHEST + 1, front[-1][1])]
        panel.plot(*zip(*steps), drawstyle="steps-post", color="0.25", linewidth=1.2, zorder=1.5)
    for _, group in reversed(members):
        _draw_point(panel, group)
    labeled = [(i, g) for i, g in members if len(members) <= MAX_LABELS or g.standing == Standing.FRONT]
    for (i, group), offset in zip(labeled, _label_offsets(panel, [_place(g) for _, g in labeled], places)):
        weight = {"fontweight": "bold"} if group.standing == Standing.FRONT else {"color": "0.35", "fontsize": 9}
        _write(panel, str(i + 1), _place(group), offset, ha="center", va="center", zorder=5, **weight)


def _draw_point(panel: Axes, group: Group) -> None:
    """Draw a group: large and bordered on the front, smaller behind it, hollow if a run has failed or not finished."""
    on_front, failed = group.standing == Standing.FRONT, group.standing == Standing.FAILED
    x, y = _place(group)
    errors = [group.deviation(field) for field in ("style_distance", "prompt_fidelity")]
    panel.errorbar(x, y, errors[1], errors[0], color=group.color, alpha=0.6, linewidth=1, zorder=2.5)
    panel.plot(
        x,
        y,
        marker=_marker(group),
        color=group.color,
        markersize=10 if on_front else 7,
        markerfacecolor="white" if failed else group.color,
        markeredgecolor="black" if on_front else group.color,
        zorder=4 if on_front else 3,
    )


def _write(panel: Axes, text: str, where: Point, offset: Point, **style: Any) -> None:
    """Write a text at an offset, in font points, from a point of the plot."""
    panel.annotate(text, where, offset, textcoords="offset points", **style)


def _label_offsets(panel: Axes, labeled: Sequence[Point], places: Sequence[Point]) -> list[Point]:
    """Return for each labeled point an offset at which its label covers no point and no other label, if there is one."""
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()

    def scale(place: Point) -> Point:
        return (place[0] - left) / (right - left) * PANEL_SIZE[0], (place[1] - bottom) / (top - bottom) * PANEL_SIZE[1]

    taken = [scale(place) for place in (*places, (1, 1), (1.06, 1))]  # the base model has a label, too
    offsets: list[Point] = []
    for x, y in map(scale, labeled):
        spots = [(x + dx, y + dy) for dx, dy in OFFSETS]
        free = [min(LABEL_SIZE, *(math.dist(spot, other) for other in taken)) for spot in spots]
        chosen = free.index(max(free))  # the first of those with enough room
        offsets.append(OFFSETS[chosen])
        taken.append(spots[chosen])
    return offsets


def _place(group: Group) -> Point:
    """Return where a group is drawn: style distance and prompt fidelity, within the limits of the axes."""
    x, y = (group.mean(field) for field in ("style_distance", "prompt_fidelity"))
    return min(max(x, LOWEST), HIGHEST), min(max(y, LOWEST), HIGHEST)


def _marker(group: Group) -> str:
    """Return a circle, or a triangle that points to where the group lies beyond the axes."""
    x, y = (group.mean(field) for field in ("style_distance", "prompt_fidelity"))
    beyond = {">": x > HIGHEST, "<": x < LOWEST, "^": y > HIGHEST, "v": y < LOWEST}
    return next((marker for marker, is_beyond in beyond.items() if is_beyond), "o")
