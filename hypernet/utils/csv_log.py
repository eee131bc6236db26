"""A CSV file that a run appends to. It survives a crash and a full disk."""

import csv
import io
import os
from pathlib import Path
from typing import Any

from hypernet.utils.atomic_files import atomic_write, remove


class CsvLog:
    """A CSV file whose first column is "step". Rows that cannot be written are kept for the next attempt.

    Args:
        path: the file; created with the first row.
        columns: the header.
    """

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns
        self.pending: list[list] = []  # rows not written yet

    def append(self, row: list) -> str | None:
        """Write the pending rows and this one.

        Returns:
            Why that failed, for the first of several failures in a row; otherwise None.
        """
        self.pending.append(row)
        new = not self.path.exists() or self.path.stat().st_size == 0  # a full disk leaves it empty
        text = io.StringIO()
        csv.writer(text).writerows([self.columns] * new + self.pending)
        size = 0 if new else self.path.stat().st_size
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError as error:
            self._truncate(size)
            return f"{self.path} cannot be written to ({error.strerror})" if len(self.pending) == 1 else None
        self.pending.clear()
        return None

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete rows, each as column -> cell."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]

    def roll_back_to(self, step: int) -> None:
        """Delete the rows of later steps, and the file if no row is left."""
        if not self.path.exists():
            return
        rows = [row for row in self.rows() if row["step"].isdigit() and int(row["step"]) <= step]
        if not rows:
            remove(self.path)
            return
        with atomic_write(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)

    def flush(self) -> None:
        """Flush the file to disk."""
        if self.path.exists():
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())

    def _truncate(self, size: int) -> None:
        """Cut off a row that was written in part."""
        try:
            with open(self.path, "rb+") as file:
                file.truncate(size)
        except OSError:
            pass  # rows() skips it
