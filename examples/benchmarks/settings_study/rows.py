"""Read and write settings.csv: one row per run of the study."""

import csv
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks.settings_study.settings import Setting
from hypernet.utils.atomic_files import atomic_write

TABLE = Path(__file__).with_name("settings.csv")
RESULT = ("val_loss", "val_loss_base", "style_distance", "prompt_fidelity", "score")  # from result.json
SAMPLE_SCORES = ("sample_style_distance", "sample_prompt_fidelity")  # of the samples, as a run measures its previews
SHARES = ("style_share", "subject_share")  # of the samples, as the classifier judges
FIGURES = (*RESULT, *SAMPLE_SCORES, *SHARES, "file_bytes")
COLUMNS = ("model", "style", "options", "seed", *FIGURES)


@dataclasses.dataclass(frozen=True)
class Row:
    """A run and its figures.

    Attributes:
        model: the hash of the base model's UNet.
        setting: the options in which the run differs from the baseline.
        figures: column -> number; what could not be measured is missing.
    """

    model: str
    style: str
    setting: Setting
    seed: int
    figures: dict[str, float]

    @property
    def key(self) -> tuple[str, str, int]:
        """What no other row has."""
        return self.style, json.dumps(self.setting), self.seed


def read_rows() -> list[Row]:
    """Return all rows; an empty list if there is no table yet."""
    if not TABLE.is_file():
        return []
    with open(TABLE, newline="", encoding="utf-8") as file:
        return [
            Row(
                cells["model"],
                cells["style"],
                json.loads(cells["options"]),
                int(cells["seed"]),
                {name: float(cells[name]) for name in FIGURES if cells[name]},
            )
            for cells in csv.DictReader(file)
        ]


def write_rows(rows: Sequence[Row]) -> None:
    """Write the table, sorted by style, setting and seed."""
    with atomic_write(TABLE) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in sorted(rows, key=lambda row: row.key):
            cells: dict[str, Any] = {"model": row.model, "style": row.style, "options": json.dumps(row.setting)}
            writer.writerow({**cells, "seed": row.seed, **{name: f"{row.figures[name]:.8g}" for name in row.figures}})


def runs_of(rows: Sequence[Row], style: str, setting: Setting) -> list[Row]:
    """Return the runs of a setting in a style."""
    return [row for row in rows if row.style == style and row.setting == setting]


def figures_of(rows: Sequence[Row], name: str) -> list[float]:
    """Return a figure of all rows that have it."""
    return [row.figures[name] for row in rows if name in row.figures]


def mean(rows: Sequence[Row], name: str) -> float | None:
    """Return the mean of a figure over the rows that have it; None if none has."""
    values = figures_of(rows, name)
    return statistics.fmean(values) if values else None
