"""The loss curve as a picture."""

import io
import logging
import math
import warnings
from collections.abc import Callable

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # the first time it would say that it looks for fonts

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

REACH = 5  # neighbours on each side that the line is the mean of


def plot_losses(rows: list[dict], name: str, held_out: list[dict] = (), returns: list[int] = ()) -> Image.Image:
    """`draw_losses` as a picture of 800x450 pixels."""
    return render(lambda: draw_losses(rows, name, held_out, returns))


def render(draw: Callable[[], Figure]) -> Image.Image:
    """The figure that `draw` makes as a picture, whatever matplotlib is set to; letters without a font are boxes."""
    buffer = io.BytesIO()
    with warnings.catch_warnings(), style.context("default"):
        warnings.filterwarnings("ignore", message="Glyph .* missing|Matplotlib currently")
        draw().savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


def draw_losses(rows: list[dict], name: str, held_out: list[dict] = (), returns: list[int] = ()) -> Figure:
    """Each logged loss as a dot over its step, and as a line the mean with up to five neighbours on each side.

    With `held_out`, rows of step, val_loss and val_loss_base, these two beside it; `returns` are the steps at which the
    guard went back. What is not finite is left out, and a held-out loss that has run away does not flatten all others.
    """
    steps, losses = _columns(rows, "loss")
    measured, base = _columns(held_out, "val_loss"), _columns(held_out, "val_loss_base")
    figure = Figure(figsize=(8, 4.5), dpi=100, layout="constrained")
    panel = figure.subplots()
    panel.plot(steps, losses, ".", color="C0", alpha=0.4, markersize=5)
    panel.plot(steps, smooth(losses, REACH), color="C0", label="training")
    if measured[0]:
        panel.plot(*measured, color="C1", label="held out")
        panel.plot(*base, color="0.55", label="held out, without it")
        figure.legend(loc="outside upper right", ncols=3, frameon=False)
    for step in returns:
        panel.axvline(step, color="C3", linewidth=1)
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "va": "top"}
        white = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        panel.annotate("guard", (step, 1), (4, 0), color="C3", bbox=white, **where)
    panel.set_title(f"{name[:60]}: loss", loc="left", parse_math=False)
    right, top = max([*steps, *measured[0], *returns], default=1), _top(losses, measured[1], base[1])
    panel.set(xlabel="step", xlim=(0, right or 1), ylim=(0, top))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    panel.grid(axis="y", color="0.9")
    panel.spines[["top", "right"]].set_visible(False)
    return figure


def _top(losses, measured, base) -> float:
    """The end of the axis: above all but a held-out loss that is ten times the usual one."""
    usual = sorted(measured)[(len(measured) - 1) // 2] if measured else 0.0
    shown = [*losses, *base, *(loss for loss in measured if loss <= 10 * usual)]
    return 1.05 * max(shown, default=1.0) or 1.0


def _columns(rows, name):
    """The steps and the values of a column that are finite."""
    pairs = [(int(row["step"]), float(row[name])) for row in rows]
    pairs = [(step, value) for step, value in pairs if math.isfinite(value)]
    return [step for step, _ in pairs], [value for _, value in pairs]


def smooth(losses: list[float], reach: int) -> list[float]:
    """Of each the mean with so many neighbours on both sides, fewer near the ends."""
    means = []
    for i in range(len(losses)):
        near = min(reach, i, len(losses) - 1 - i)
        means.append(sum(losses[i - near : i + near + 1]) / (2 * near + 1))
    return means
