"""The rows of settings.csv: one for each run that settings_table.py has made."""

import csv
import json
from pathlib import Path

from hypernet.utils.atomic_files import atomic_write

TABLE = Path(__file__).with_name("settings.csv")
COLUMNS = ["section", "style", "run", "seed", "options", "val_loss", "val_loss_base", "half_at_step", "style_share"]
COLUMNS += ["subject_share", "file_bytes", "rank"]


def read_rows() -> list[dict]:
    if not TABLE.is_file():
        return []
    with open(TABLE, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(rows: list[dict]):
    with atomic_write(TABLE) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [str(row[name]) for name in COLUMNS[:4]]))


def base_rows(rows: list[dict], base: dict) -> list[dict]:
    """The runs with which all others are compared, of more seeds than those."""
    return [row for row in rows if row["section"] in ("rate", "baseline") and json.loads(row["options"]) == base]


def at_rate(rows: list[dict], rate: str) -> list[dict]:
    """Without those of the rates' section that have another one."""
    return [row for row in rows if row["section"] != "rate" or json.loads(row["options"])["learning_rate"] == rate]


def order(row: dict) -> list:
    """Rates by their size, all else by the alphabet."""
    options = json.loads(row["options"])
    return [(0.0, str(value)) if key != "learning_rate" else (float(value), "") for key, value in options.items()]


def label(row: dict) -> str:
    text = ", ".join(f"{key} {value}" for key, value in json.loads(row["options"]).items())
    return f"LoRA of rank {row['rank']}, {text}" if row["rank"] else text
