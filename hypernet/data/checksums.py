"""Checksums of the rows of an Arrow file, which show rows that a disk has damaged."""

import typing
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute

FLOATS = datasets.List(datasets.Value("float32"))  # type of a column of flat arrays
CHECKSUM = {"crc32": datasets.Value("uint32")}  # of the other cells of a row; caches of earlier versions have none


def row_checksum(cells: Iterable[object]) -> int:
    """Return the CRC-32 of a row, over the bytes of its arrays and the text of its other cells."""
    total = 0
    for cell in cells:
        total = zlib.crc32(cell.data if isinstance(cell, np.ndarray) else f"{cell}|".encode(), total)
    return total


def without_rows(keys: typing.Any, rows: list[int]) -> typing.Any:
    """Return an Arrow column of keys, null in these rows."""
    if not rows:
        return keys
    is_kept = np.ones(len(keys), bool)
    is_kept[rows] = False
    return pyarrow.compute.if_else(pyarrow.array(is_kept), keys, pyarrow.scalar(None, "string"))


def find_damaged_rows(path: Path, features: datasets.Features, rows: np.ndarray) -> list[int]:
    """Return which of these ascending rows of a file have a wrong checksum; none in a file without checksums.

    The file is mapped into memory separately, so that the pages read here are released.
    """
    table = open_table(path)
    if set(table.column_names) != {*features, *CHECKSUM}:
        return []
    columns = (_cells(table.column(name), kind, rows) for name, kind in features.items())
    expected = table.column("crc32").take(pyarrow.array(rows)).to_pylist()
    return [row for row, crc32, *cells in zip(rows.tolist(), expected, *columns) if row_checksum(cells) != crc32]


def open_table(path: Path) -> typing.Any:
    """Map an Arrow file into memory. A damaged one raises errors of many kinds; unchecked, it could crash Python."""
    table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    table.validate(full=True)
    return table


def _cells(column: typing.Any, kind: object, rows: np.ndarray) -> Iterator[object]:
    """Yield the cells of an Arrow column in these ascending rows, lists as views of its memory."""
    if kind != FLOATS:
        yield from column.take(pyarrow.array(rows)).to_pylist()
        return
    start = 0
    for chunk in column.chunks:
        values, offsets, valid = split_lists(chunk)
        first, end = np.searchsorted(rows, (start, start + len(chunk)))
        for row in (rows[first:end] - start).tolist():
            yield values[offsets[row] : offsets[row + 1]] if valid[row] else None
        start += len(chunk)


def split_lists(chunk: typing.Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all numbers of an Arrow array of lists, the offsets of the lists, and which of them are not null."""
    return chunk.values.to_numpy(), chunk.offsets.to_numpy(), chunk.is_valid().to_numpy(zero_copy_only=False)
