"""Plot the losses of a run."""

import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hypernet.training.range_test import RangeTest

Rows = Sequence[Mapping[str, Any]]  # of a CSV file

NEIGHBORS = 5  # on each side, for the smoothed line
OUTLIER = 10  # times the median validation loss: larger ones do not stretch the axis


def plot_losses(
    rows: Rows, name: str, validation_rows: Rows = (), rollbacks: Sequence[int] = (), scores: Rows = ()
) -> Image.Image:
    """Return the plot of `draw_losses` as an image of 800 x 450 pixels, or 800 x 650 with scores."""
    return render(lambda: draw_losses(rows, name, validation_rows, rollbacks, scores))


def render(draw: Callable[[], "Figure"]) -> Image.Image:
    """Return the figure that `draw` makes as an image, whatever the user's matplotlib settings are."""
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # hides its note on building the font cache
    from matplotlib import style

    buffer = io.BytesIO()
    with warnings.catch_warnings(), style.context("default"):
        warnings.filterwarnings("ignore", message="Glyph .* missing|Matplotlib currently")  # these become boxes
        draw().savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def draw_losses(
    rows: Rows, name: str, validation_rows: Rows = (), rollbacks: Sequence[int] = (), scores: Rows = ()
) -> "Figure":
    """Plot each logged loss as a dot, and the running mean as a line; below it the scores, if there are any.

    Values that are not finite are left out.

    Args:
        rows: with the columns step and loss.
        name: of the hypernetwork, for the title.
        validation_rows: with the columns step, val_loss and val_loss_base.
        rollbacks: steps at which the divergence guard rolled back.
        scores: with the columns step, prompt_fidelity and style_distance.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    steps, losses = _columns(rows, "loss")
    validation, base = _columns(validation_rows, "val_loss"), _columns(validation_rows, "val_loss_base")
    figure = Figure(figsize=(8, 6.5 if scores else 4.5), dpi=100, layout="constrained")
    panel, *below = figure.subplots(
        1 + bool(scores), squeeze=False, sharex=True, height_ratios=[2, 1][: 1 + bool(scores)]
    )[:, 0]
    panel.plot(steps, losses, ".", color="C0", alpha=0.4, markersize=5)
    panel.plot(steps, smooth(losses, NEIGHBORS), color="C0", label="training")
    if validation[0]:
        panel.plot(*validation, color="C1", label="validation")
        panel.plot(*base, color="0.55", label="validation, base model")
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
    for step in rollbacks:
        panel.axvline(step, color="C3", linewidth=1)
        panel.annotate(
            "guard",
            (step, 1),
            (4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="top",
            color="C3",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    panel.set_title(f"{name[:60]}: loss", loc="left", parse_math=False)
    right = max([*steps, *validation[0], *rollbacks, *(int(row["step"]) for row in scores)], default=1)
    panel.set(xlim=(0, right or 1), ylim=(0, _top(losses, validation[1], base[1])))
    (below or [panel])[-1].set_xlabel("step")
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    if scores:
        _draw_scores(below[0], scores)
    return figure


def plot_range_test(test: "RangeTest", name: str, learning_rate: float | None) -> Image.Image:
    """Return the plot of `draw_range_test` as an image of 800 x 450 pixels."""
    return render(lambda: draw_range_test(test, name, learning_rate))


def draw_range_test(test: "RangeTest", name: str, learning_rate: float | None) -> "Figure":
    """Plot the loss against the learning rate, and mark the one to train with.

    Args:
        name: of the hypernetwork, for the title.
        learning_rate: the one to train with; None if the loss does not fall.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    panel = figure.subplots()
    points = [(rate, loss) for rate, loss in zip(test.learning_rates, test.losses) if math.isfinite(loss)]
    panel.plot([rate for rate, _ in points], [loss for _, loss in points], ".-", color="C0")
    panel.axhline(1, color="0.55", linewidth=1)
    if learning_rate is not None:
        panel.axvline(learning_rate, color="C2")
        panel.annotate(
            f"chosen: {learning_rate:.2g}",
            (learning_rate, 0),
            (4, 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color="C2",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    losses = [loss for _, loss in points]
    fall = max(1 - min(losses, default=1), 1e-4)
    panel.set(xscale="log", ylim=(1 - 1.2 * fall, 1 + fall), xlabel="learning rate")
    panel.set_title(f"{name[:60]}: range test (loss relative to that before the test)", loc="left", parse_math=False)
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_scores(panel: "Axes", scores: Rows) -> None:
    """Plot prompt fidelity and style distance between 0 and a little over 1."""
    for column, color in (("prompt_fidelity", "C2"), ("style_distance", "C4")):
        panel.plot(*_columns(scores, column), ".-", color=color, label=column.replace("_", " "))
    panel.set_title("prompt fidelity (higher is better) and style distance (lower is better)", loc="left", fontsize=10)
    panel.set(ylim=(0, 1.25))
    panel.legend(loc="upper right", ncols=2, frameon=False)
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)


def _top(losses: list[float], validation: list[float], base: list[float]) -> float:
    """Return the upper end of the loss axis, above all but outliers of the validation loss."""
    median = sorted(validation)[(len(validation) - 1) // 2] if validation else 0.0
    shown = [*losses, *base, *(loss for loss in validation if loss <= OUTLIER * median)]
    return 1.05 * max(shown, default=1.0) or 1.0


def _columns(rows: Rows, name: str) -> tuple[list[int], list[float]]:
    """Return the steps and the values of a column, where they are finite; a user may have deleted the column."""
    pairs = [(int(row["step"]), float(row.get(name) or math.nan)) for row in rows]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(values: list[float], neighbors: int) -> list[float]:
    """Return the running mean over each value and its neighbors on both sides, fewer near the ends."""
    means = []
    for i in range(len(values)):
        near = min(neighbors, i, len(values) - 1 - i)
        means.append(sum(values[i - near : i + near + 1]) / (2 * near + 1))
    return means
