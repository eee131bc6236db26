"""Read and write settings.csv: one row per run of the study.

The column `model` has the hash of the base model's UNet, so that the figures of a new model never mix with older ones.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypernet.utils.atomic_files import atomic_write

TABLE = Path(__file__).with_name("settings.csv")
COLUMNS = ["model", "section", "style", "run", "seed", "options", "val_loss", "val_loss_base"]
COLUMNS += ["reach", "reached_at_step", "style_share", "subject_share", "file_bytes", "rank"]
REACH = 0.97  # share of the base model's validation loss; how soon a run gets there tells how fast it learns

Row = Mapping[str, Any]  # column -> cell; all cells are text after reading


def read_rows() -> list[Row]:
    """Return all rows; an empty list if there is no table yet."""
    if not TABLE.is_file():
        return []
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[Row]) -> None:
    """Write the table, sorted by model, section, style, run and seed."""
    with atomic_write(TABLE) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [str(row[name]) for name in COLUMNS[:5]]))


def find_reached(losses: Sequence[tuple[int, float]], base: float | None) -> dict[str, Any]:
    """Return the columns about the first step with a loss of at most `REACH` times the base model's.

    Args:
        losses: (step, validation loss) pairs.
    """
    limit = REACH * base if base else 0.0
    return {"reach": REACH, "reached_at_step": next((step for step, loss in losses if loss <= limit), None)}


def rows_of_one_model(rows: list[Row], model: str, count: int) -> list[Row]:
    """Return the runs of this model if there are `count`, a whole study; otherwise those of the model with the most."""
    runs: dict[str, list[Row]] = {}
    for row in rows:
        runs.setdefault(row["model"], []).append(row)
    own = runs.get(model, [])
    return own if len(own) >= count else max(runs.values(), key=len, default=[])


def baseline_rows(rows: list[Row], base: dict[str, Any]) -> list[Row]:
    """Return the runs with the options `base`: the ones every other setting is compared with, on more seeds."""
    return [row for row in rows if row["section"] in ("rate", "baseline") and json.loads(row["options"]) == base]


def at_learning_rate(rows: list[Row], learning_rate: str) -> list[Row]:
    """Return the rows without the runs of the section "rate" that use another learning rate."""
    return [
        row for row in rows if row["section"] != "rate" or json.loads(row["options"])["learning_rate"] == learning_rate
    ]


def sort_key(row: Row) -> list[tuple[float, str]]:
    """Return the key that sorts settings: learning rates by value, everything else alphabetically."""
    options = json.loads(row["options"])
    return [(0.0, str(value)) if key != "learning_rate" else (float(value), "") for key, value in options.items()]


def setting_label(row: Row) -> str:
    """Return the label of a run's setting in tables and plots."""
    text = ", ".join(f"{key} {value}" for key, value in json.loads(row["options"]).items())
    return f"LoRA of rank {row['rank']}, {text}" if row["rank"] else text
