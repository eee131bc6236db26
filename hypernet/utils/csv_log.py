"""A CSV file that a run appends to, and that survives a crash and a full disk."""

import csv
import io
import os
from pathlib import Path

from hypernet.utils.atomic_files import atomic_write, remove


class CsvLog:
    """Rows with the column "step" first. What cannot be written now is written with the next row."""

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns, self.pending = path, columns, []

    def append(self, row: list) -> str | None:
        """Add a row; why that failed, the first time it does. It is kept, then, for the next time."""
        self.pending.append(row)
        new = not self.path.exists() or self.path.stat().st_size == 0  # a full disk leaves it empty
        text = io.StringIO()
        csv.writer(text).writerows([self.columns] * new + self.pending)
        size = 0 if new else self.path.stat().st_size
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            self._cut_to(size)
            return f"{self.path} cannot be written to ({error.strerror})" if len(self.pending) == 1 else None
        self.pending.clear()
        return None

    def rows(self) -> list[dict]:
        """The complete rows."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]

    def roll_back_to(self, step: int):
        """Forget the rows of later steps."""
        if self.path.exists():
            rows = [row for row in self.rows() if row["step"].isdigit() and int(row["step"]) <= step]
            if not rows:
                return remove(self.path)
            with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    def flush(self):
        """Have on the disk what has been written."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def _cut_to(self, size):
        """Take back half a row."""
        try:
            with open(self.path, "rb+") as file:
                file.truncate(size)
        except OSError:
            pass  # rows() passes over it
