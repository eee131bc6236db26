"""A CSV file that a run appends to. It survives crashes, full disks, and other programs that lock or rewrite it."""

import collections
import csv
import dataclasses
import io
import itertools
import os
import re
from pathlib import Path
from typing import Any

from hypernet.utils.atomic_files import atomic_write, remove
from hypernet.utils.errors import reason
from hypernet.utils.file_kinds import check_file

TEXT_COLUMNS = {"event"}  # all other columns hold numbers
DELIMITERS = ",;\t"  # spreadsheets write one of these, depending on the language
DECIMAL_COMMA = re.compile(r"^([+-]?\d+),(\d+(?:[eE][+-]?\d+)?)$")

Row = dict[str, str]  # column -> cell


class CsvLog:
    """A CSV file whose first column is "step". Rows that cannot be written are kept in memory and written later.

    No method raises an OSError. A file that another program has saved in its own format (a byte order mark, semicolons,
    decimal commas) is read, and rewritten before anything is appended. If it cannot be read in full, it is kept
    under another name, and its readable rows go into a new one.

    Args:
        path: the file; created with the first row.
        columns: the header. Columns that an existing file lacks are added to it.
    """

    def __init__(self, path: Path, columns: list[str]):
        self.path, self.columns = path, columns
        self._pending: list[Row] = []  # rows that are not in the file yet
        self._restored = False  # from a checkpoint: the file may have some of them by now
        self._last_step: int | None = None  # rows of later steps are still to be deleted from the file
        self._header: list[str] = []  # of the file as this object left it
        self._size: int | None = None  # likewise, in bytes; None if the file has yet to be read
        self._failing = False
        self._note: str | None = None  # to return when the file has been written

    def append(self, row: list) -> str | None:
        """Write the pending rows and this one.

        Returns:
            A line to print if the file was damaged, or for the first of several failures in a row; else None.
        """
        self._pending.append(dict(zip(self.columns, map(str, row), strict=True)))
        return self._write()

    def rows(self) -> list[dict[str, Any]]:
        """Return the complete rows, written or not, each as column -> cell."""
        try:
            table = _parse(self._read(), self.columns)
        except OSError:
            table = _Table()
        return self._merge(table)

    def roll_back_to(self, step: int) -> str | None:
        """Delete the rows of later steps, and the file if no row is left. Return a line to print, like `append`."""
        self._pending = [row for row in self._pending if int(row["step"]) <= step]
        self._last_step = step if self._last_step is None else min(step, self._last_step)
        self._size = None
        return self._write()

    def flush(self) -> None:
        """Flush the file to disk, if possible."""
        try:
            with open(self.path, "rb+") as file:
                os.fsync(file.fileno())
        except OSError:
            pass  # it does not exist, or is locked

    def finish(self) -> str | None:
        """Try once more to write the pending rows. Return a line to print, as on rows that are not written, or None."""
        note = self._write() if self.state_dict() else None
        if not self.state_dict():
            return note
        return f"{self.path} is not up to date; its rows are in the last checkpoint, and the same command writes them"

    def state_dict(self) -> dict[str, Any]:
        """Return what the file lacks; empty if it is up to date. For checkpoints, so that no row is lost."""
        if not self._pending and self._last_step is None:
            return {}
        return {"rows": self._pending, "last_step": self._last_step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what the file lacked; the next call writes it."""
        if state:
            self._pending, self._last_step, self._size = list(state["rows"]), state["last_step"], None
            self._restored = True

    def _write(self) -> str | None:
        """Bring the file up to date. Return a line to print, or None."""
        try:
            size = self.path.stat().st_size if self.path.exists() else 0
            if size > 0 and size == self._size and set(self.columns) <= set(self._header):
                self._append(size)
            else:  # it is new, or another program has written it
                self._rewrite()
        except OSError as error:
            is_first, self._failing = not self._failing, True
            problem = f"{self.path} cannot be written to ({reason(error)})"
            return f"{problem}; its rows are kept and written later" if is_first else None
        self._failing = False
        note, self._note = self._note, None
        return note

    def _append(self, size: int) -> None:
        """Append the pending rows to a file of `size` bytes, all or none of them."""
        content = _format(self._header, self._pending, header=False)
        if content:
            try:
                with open(self.path, "ab") as file:
                    file.write(content)
            except OSError:
                self._truncate(size)
                raise
            self._size = size + len(content)
            self._pending = []

    def _rewrite(self) -> None:
        """Rewrite the whole file, unless its content stays the same."""
        self.path.parent.stat()  # raises if the disk is gone, so that nothing is written in its place
        before = self._read()
        table = _parse(before, self.columns)
        rows = self._merge(table)
        if table.problem:
            damaged = self._free_path()
            self.path.rename(damaged)
            self._note = f"{self.path}: {table.problem}; it is kept as {damaged.name}, and a new file holds the rest"
            self._pending, self._last_step, before = rows, None, b""  # in case the disk is full
            self._restored = False
        header = list(dict.fromkeys(itertools.chain(table.columns, *rows, self.columns)))
        content = _format(header, rows) if rows else b""
        if not rows:
            remove(self.path)
        elif content != before:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(content)
        self._header, self._size = header, len(content)
        self._pending, self._last_step, self._restored = [], None, False

    def _merge(self, table: "_Table") -> list[Row]:
        """Return the rows of the file that have not been rolled back, then those that it lacks."""
        kept = [row for row in table.rows if self._last_step is None or int(row["step"]) <= self._last_step]
        if not self._restored:
            return [*kept, *self._pending]
        written, missing = collections.Counter(map(_key, kept)), []
        for row in self._pending:
            if written[_key(row)]:
                written[_key(row)] -= 1
            else:
                missing.append(row)
        return [*kept, *missing]

    def _read(self) -> bytes:
        if not self.path.exists():
            return b""
        check_file(self.path)
        return self.path.read_bytes()

    def _free_path(self) -> Path:
        """Return an unused name beside the file, NAME-damaged.csv."""
        stem = f"{self.path.stem}-damaged"
        names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
        paths = (self.path.with_name(f"{name}{self.path.suffix}") for name in names)
        return next(path for path in paths if not path.exists())

    def _truncate(self, size: int) -> None:
        """Cut off a row that was written in part."""
        try:
            with open(self.path, "rb+") as file:
                file.truncate(size)
        except OSError:
            pass  # the next attempt finds another size and rewrites the file


def _key(row: Row) -> tuple[str, ...]:
    """Return what tells a row from others. Not its numbers, which a spreadsheet may have rounded."""
    return (row["step"], *(row.get(name, "") for name in sorted(TEXT_COLUMNS)))


# --- The format


@dataclasses.dataclass
class _Table:
    """The content of a CSV file."""

    columns: list[str] = dataclasses.field(default_factory=list)
    rows: list[Row] = dataclasses.field(default_factory=list)
    problem: str | None = None  # what could not be read


def _parse(content: bytes, known: list[str]) -> _Table:
    """Parse the readable rows of a table, whichever program saved it. A truncated last line is ignored.

    Args:
        known: the columns whose cells must be readable; in others, people may write what they like.
    """
    is_utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    text = content.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace")
    *lines, rest = io.StringIO(text, newline=None).getvalue().split("\n")
    lines = [line for line in lines if line.strip(f"{DELIMITERS} ")]
    if not lines and rest[:4] == "step"[: len(rest)]:
        return _Table()
    header, delimiter = next(((cells, sign) for sign in DELIMITERS if (cells := _header(lines, sign))), ([], ""))
    if not header:
        return _Table(problem="its header cannot be read")
    rows: list[Row | None] | None = _parse_plain(lines[1:], header, known) if delimiter == "," else None
    if rows is None:
        rows = [_parse_row(line, header, delimiter, known) for line in lines[1:]]
    last = _parse_row(rest, header, delimiter, known)
    plain = [row for row in [*rows, last] if row is not None]
    unreadable = rows.count(None)
    return _Table(header, plain, f"{unreadable} of its {len(rows)} rows cannot be read" if unreadable else None)


def _header(lines: list[str], delimiter: str) -> list[str]:
    """Return the columns in the first line, without the empty ones a spreadsheet may add; [] if it is not a header."""
    cells = _split(lines[0], delimiter) if lines else []
    while cells and not cells[-1]:
        cells.pop()
    is_header = len(cells) > 1 and cells[0] == "step" and len(set(cells)) == len(cells)
    return cells if is_header and all(cell and cell.isprintable() and "\ufffd" not in cell for cell in cells) else []


def _parse_plain(lines: list[str], columns: list[str], known: list[str]) -> list[Row | None] | None:
    """Return the same rows as `_parse_row`, in a fraction of the time; None if a line may need more care."""
    try:
        rows = list(csv.reader(lines))
        cells = list(zip(*rows, strict=True))
        if len(rows) != len(lines) or len(cells) != len(columns) or not all(map(str.isdecimal, cells[0])):
            return None
        for name, column in zip(columns, cells):
            joined = "".join(column)
            if "\0" in joined or "\ufffd" in joined or ("," in joined and name not in TEXT_COLUMNS):
                return None
            if name not in TEXT_COLUMNS and (name in known or not known):
                for cell in column:
                    float(cell or 0)
    except (ValueError, csv.Error):
        return None
    return [dict(zip(columns, row)) for row in rows]


def _parse_row(line: str, columns: list[str], delimiter: str, known: list[str]) -> Row | None:
    """Return the row in a line, or None if there is none. In any file, commas also count as delimiters."""
    for sign in dict.fromkeys((delimiter, ",")):
        cells = _split(line, sign)
        row = dict(zip(columns, cells))
        row = {name: cell if name in TEXT_COLUMNS else DECIMAL_COMMA.sub(r"\1.\2", cell) for name, cell in row.items()}
        is_complete = len(row) == len(columns) and not any(cells[len(columns) :]) and row["step"].isdecimal()
        ours = {name: cell for name, cell in row.items() if name in known or not known}
        if is_complete and all(name in TEXT_COLUMNS or _is_number(cell) for name, cell in ours.items()):
            return None if {"\0", "\ufffd"} & set("".join(ours.values())) else row
    return None


def _is_number(cell: str) -> bool:
    """Whether a cell holds a number, or is empty because the column was added later."""
    try:
        float(cell or 0)
    except ValueError:
        return False
    return True


def _split(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line; [] if it cannot be read."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:
        return []


def _format(columns: list[str], rows: list[Row], header: bool = True) -> bytes:
    """Return rows as CSV; cells of columns that a row lacks are empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
