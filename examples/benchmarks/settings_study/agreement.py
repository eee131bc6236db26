#!/usr/bin/env python
"""Compare what a run measures itself with what the quickstart's classifier sees, over the runs in settings.csv.

    python examples/benchmarks/settings_study/agreement.py
    python examples/benchmarks/settings_study/agreement.py rates_openmoji.csv rates_streamline.csv

Prints Spearman's rank correlations: of prompt fidelity with the share of samples that show their subject, and of style
distance (its sign reversed) with the share in the style; measured on the same 36 samples, and by the run itself on its
12 previews; and for comparison those of the validation loss (reversed, too). Over all runs, and within each style and
each section of the study with at least ten runs. Then, for limits of prompt fidelity, how many ruined and good runs a
limit refuses. CSV files of rate_robustness.py, if named, count as more runs.
"""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from examples.benchmarks.settings_study.rows import FIGURES, TABLE, Row, read_rows
from examples.benchmarks.settings_study.settings import SECTIONS
from hypernet.cli.script import ScriptParser, run_script
from hypernet.utils.errors import UserError, reason

MIN_RUNS = 10
LIMITS = (0.4, 0.5, 0.6, 0.7)  # of prompt fidelity
RUINED, GOOD = 1 / 2, 2 / 3  # share of correct subjects below which, or from which on, a run counts as that
PAIRS = {  # heading -> a figure, its sign, and the one that it should agree with
    "prompt fidelity, correct subject": ("sample_prompt_fidelity", 1, "subject_share"),
    "the run's own": ("prompt_fidelity", 1, "subject_share"),
    "style distance, in the style": ("sample_style_distance", -1, "style_share"),
    "the run's own style distance": ("style_distance", -1, "style_share"),
    "validation loss, correct subject": ("val_loss", -1, "subject_share"),
    "validation loss, in the style": ("val_loss", -1, "style_share"),
}


def spearman(values: Sequence[float], others: Sequence[float]) -> float:
    """Return Spearman's rank correlation; equal values share the mean of their ranks. NaN if all values are equal."""
    ranks = np.array([_ranks(values), _ranks(others)])
    with np.errstate(invalid="ignore"):  # without any spread
        return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: Sequence[float]) -> np.ndarray:
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[places]


def read_rate_rows(path: Path) -> list[Row]:
    """Return the runs in a CSV file of rate_robustness.py.

    Raises:
        UserError: if it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            cells = list(csv.DictReader(file))
        setting = ("learning_rate", "guard")
        return [
            Row(
                "",
                row["style"],
                {name: row[name] for name in setting},
                0,
                {name: float(row[name]) for name in FIGURES if row.get(name)},
            )
            for row in cells
        ]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: it is no table of rate_robustness.py ({reason(error)})") from None


def group_rows(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return all rows, and those of each style and each section that has at least `MIN_RUNS`."""
    styles = list(dict.fromkeys(row.style for row in rows))
    groups = {style: [row for row in rows if row.style == style] for style in styles if len(styles) > 1}
    groups |= {name: [row for row in rows if row.setting in settings] for name, settings in SECTIONS.items()}
    return {"all runs": list(rows)} | {name: group for name, group in groups.items() if len(group) >= MIN_RUNS}


def correlate(rows: Sequence[Row], figure: str, sign: int, other: str) -> tuple[float, int]:
    """Return the correlation of two figures over the rows that have both, and the number of these."""
    pairs = [(sign * row.figures[figure], row.figures[other]) for row in rows if {figure, other} <= row.figures.keys()]
    pairs = [pair for pair in pairs if np.isfinite(pair).all()]
    return (spearman(*zip(*pairs)) if len(pairs) >= MIN_RUNS else np.nan), len(pairs)


def build_agreement_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table with a line per group of runs."""
    lines = [f"| runs | {' | '.join(PAIRS)} |", "| --- " * (1 + len(PAIRS)) + "|"]
    for name, group in group_rows(rows).items():
        cells = [correlate(group, *pair) for pair in PAIRS.values()]
        texts = [f"{correlation:.2f} ({count})" if np.isfinite(correlation) else "" for correlation, count in cells]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def build_limit_table(rows: Sequence[Row]) -> str:
    """Return a Markdown table of how many ruined and good runs have a prompt fidelity below each limit."""
    names = ("prompt_fidelity", "subject_share")
    pairs = [tuple(row.figures[name] for name in names) for row in rows if set(names) <= row.figures.keys()]
    ruined = [fidelity for fidelity, share in pairs if share < RUINED]
    good = [fidelity for fidelity, share in pairs if share >= GOOD]
    lines = ["| limit | fewer than half of the subjects | at least two thirds |", "| --- | --- | --- |"]
    for limit in LIMITS:
        below = [f"{sum(fidelity < limit for fidelity in group)} of {len(group)}" for group in (ruined, good)]
        lines.append(f"| {limit:g} | {' | '.join(below)} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = ScriptParser(__doc__)
    help = "CSV files that examples/benchmarks/rate_robustness.py wrote"
    parser.add_argument("rates", nargs="*", type=Path, help=help)
    rows = read_rows()
    for path in parser.parse_args().rates:
        rows += read_rate_rows(path)
    if len(rows) < MIN_RUNS:
        raise UserError(f"{TABLE}: it has {len(rows)} runs; train at least {MIN_RUNS} with run.py beside it")
    print("Spearman's correlation, and in parentheses the number of runs:\n")
    print(build_agreement_table(rows))
    print("\nRuns below a limit of their own prompt fidelity:\n")
    print(build_limit_table(rows))


if __name__ == "__main__":
    run_script(main)
