"""Thin the tables of a run to curves for its page, so that a million steps take no more space than a thousand."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Rows = Sequence[Mapping[str, Any]]  # of a CSV file
Curve = dict[str, Any]

MAX_POINTS = 600  # per curve; a screen shows no more
DIGITS = 6  # significant
EFFECT = "effect/"  # the perturbation's columns in metrics.csv start with it


def thin(rows: Rows, column: str, max_points: int = MAX_POINTS) -> Curve | None:
    """Return a column as a curve; None if no row has a value.

    Rows are averaged in groups of equal size, the smallest that gives at most `max_points` points. Each point comes
    with the range of its group, so that no peak is lost.

    Returns:
        "steps" (the last of each group), "values" (means), "low" and "high" (None where each row is a point), and
        "broken": the steps of values that are not finite. A value is None if none in its group is finite.
    """
    found = [(row["step"], cell) for row in rows if (cell := row.get(column, "")) not in ("", None)]
    if not found:
        return None
    steps, values = np.array([int(step) for step, _ in found]), np.array([float(cell) for _, cell in found])
    finite = np.isfinite(values)
    starts = np.arange(0, len(values), math.ceil(len(values) / max_points))
    counts = np.add.reduceat(finite.astype(int), starts)
    means = np.add.reduceat(np.where(finite, values, 0), starts) / np.where(counts, counts, math.nan)
    low = np.minimum.reduceat(np.where(finite, values, math.inf), starts)
    high = np.maximum.reduceat(np.where(finite, values, -math.inf), starts)
    is_thinned = len(starts) < len(values)
    return {
        "steps": steps[[*(starts[1:] - 1), -1]].tolist(),
        "values": _numbers(means),
        "low": _numbers(low) if is_thinned else None,
        "high": _numbers(high) if is_thinned else None,
        "broken": steps[~finite][:MAX_POINTS].tolist(),
    }


def _numbers(values: np.ndarray) -> list[float | None]:
    """Return rounded numbers, None for those that are not finite, which JSON does not have."""
    return [float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None for value in values.tolist()]


def draw_panels(losses: Rows, validation_losses: Rows, metrics: Rows, scores: Rows = ()) -> list[dict[str, Any]]:
    """Return the plots of the page: a title, what it means, and curves, each with a label and a style.

    Styles: "noisy" (faint, with a smoothed line), "dots", "dashed", "line".
    """
    widths = sorted({int(name[len(EFFECT) :]) for row in metrics[-1:] for name in row if _is_effect(name)})
    effects = [(metrics, f"{EFFECT}{width}", str(width), "line") for width in widths]
    panels = [
        (
            "Loss",
            "The validation loss does not see whether the subjects are still there."
            if validation_losses
            else "Noisy; look at the trend.",
            [
                (losses, "loss", "training", "noisy"),
                (validation_losses, "val_loss", "validation", "dots"),
                (validation_losses, "val_loss_base", "base model", "dashed"),
            ],
        ),
        ("Learning rate", "", [(losses, "learn_rate", "learning rate", "line")]),
        ("Perturbation", "Size of what is added, relative to the context, by context width.", effects),
        ("Gradient norm", "Before clipping.", [(metrics, "grad_norm", "gradient norm", "noisy")]),
    ]
    if scores:
        hint = (
            "Prompt fidelity: 1 as without the hypernetwork, 0 gone. Style distance: 1 as without it, 0 as your images."
        )
        columns = [(scores, name, name.replace("_", " "), "dots") for name in ("prompt_fidelity", "style_distance")]
        panels.insert(1, ("Scores", hint, columns))
    return [
        {
            "title": title,
            "hint": hint,
            "curves": [
                {"label": label, "style": style, **curve}
                for rows, column, label, style in columns
                if (curve := thin(rows, column)) is not None
            ],
        }
        for title, hint, columns in panels
    ]


def _is_effect(name: str) -> bool:
    return name.startswith(EFFECT) and name[len(EFFECT) :].isdecimal()
