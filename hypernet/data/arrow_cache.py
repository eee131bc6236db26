"""Cache computed rows by key in the memory-mapped Arrow files of `datasets`."""

import contextlib
import os
import time
import typing
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from hypernet.data.part_files import new_part_files, remove_abandoned
from hypernet.utils.atomic_files import atomic_write, check_writable, free_space
from hypernet.utils.errors import UserError, counted, is_local_main_process
from hypernet.utils.numbers import size_text

CACHE_VERSION = 2  # increment it whenever the same inputs get encoded differently
FLOATS = datasets.List(datasets.Value("float32"))  # type of a column of flat arrays
CHECKSUM = {"crc32": datasets.Value("uint32")}  # of the other cells of a row; caches of earlier versions have none
PART_SECONDS = 30  # the most work lost when a long computation is stopped

Item = typing.TypeVar("Item")
Row = dict[str, typing.Any]


def cache_folder(cache_dir: str | None) -> Path:
    """Return `--cache_dir`, or a folder within the cache of datasets."""
    return Path(cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "hypernet"))


def check_cache_folder(cache_dir: str | None) -> None:
    """Create the cache folder, and remove files that killed runs have left in it.

    Raises:
        UserError: if it cannot be written.
    """
    folder = cache_folder(cache_dir)
    try:
        check_writable(folder)
    except OSError as error:
        option = f"--cache_dir {cache_dir}" if cache_dir else f"the cache folder {folder}"
        raise UserError(f"{option}: it cannot be written to ({error.strerror}); name another --cache_dir") from None
    remove_abandoned(folder)


def check_space(folder: Path, needed: int) -> None:
    """Raise UserError if the disk of a folder in the cache has no room for `needed` bytes."""
    if needed > (free := free_space(folder)):
        problem = f"encoded images need {size_text(needed)} there, but only {size_text(free)} is free"
        raise UserError(f"the cache {folder.parent}: {problem}; name another --cache_dir")


class RowCache:
    """A table with a column "key" and the columns `features`, in the .arrow files of a folder.

    Files are only added, atomically and under unique names, so any number of runs may share a folder. Rows are looked
    up by key in the memory-mapped files, so the rows of other runs cost next to nothing. Each row has a checksum;
    `fill` verifies those of the rows that a run needs, before they are used.
    """

    def __init__(self, folder: Path, features: dict):
        self.folder, self.features = folder, datasets.Features({"key": datasets.Value("string"), **features})
        self._damaged: dict[Path, list[int]] = {}  # file -> its rows with a wrong checksum
        self._open()

    def _open(self) -> None:
        parts, keys = [], []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                part = datasets.Dataset.from_file(str(path))
                if {**part.features, **CHECKSUM} == {**self.features, **CHECKSUM}:
                    part.data.table.validate(full=True)  # a damaged file could crash the interpreter
                    keys += _without(part.data.column("key"), self._damaged.get(path, [])).chunks
                    parts.append(part.select_columns(list(self.features)))
            except Exception:  # the libraries raise whatever a damaged file leads them to
                continue  # its rows are computed again
        empty = datasets.Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        self.table = datasets.concatenate_datasets(parts or [empty]).data
        self._keys = pyarrow.chunked_array(keys, "string")
        self._columns: dict[str, list[tuple]] = {}
        self._ends = np.cumsum([len(chunk) for chunk in self.table.column("key").chunks])

    def fill(
        self,
        wanted: dict[str, Item],
        compute: Callable[[list[tuple[str, Item]]], Iterable[Row | None]],
        description: str,
        unit: str,
    ) -> None:
        """Compute the rows that are missing or damaged, with a progress bar.

        Args:
            wanted: key -> what `compute` needs for its row.
            compute: takes the (key, item) pairs that have no row, and yields the row of each (with its key), or None to
                store none, in any order.
            description, unit: labels of the progress bar.

        Raises:
            UserError: if the cache cannot be written.
        """
        self._exclude_damaged(wanted)
        missing = [item for item, row in zip(wanted.items(), self.positions(list(wanted))) if row < 0]
        if not missing:
            return
        bar_options = {"total": len(missing), "desc": description, "unit": f" {unit}"}
        try:
            with tqdm(iter(compute(missing)), **bar_options, disable=not is_local_main_process()) as bar:
                kept = (row for row in bar if row is not None)
                row = next(kept, None)
                with new_part_files(self.folder) as paths:
                    while row is not None:
                        with atomic_write(next(paths)) as temporary:
                            row = self._write_part(temporary, row, kept)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to ({error}); name another --cache_dir") from None
        self._open()

    def _write_part(self, path: Path, row: Row | None, rows: Iterator[Row]) -> Row | None:
        """Write `row` and those that follow for PART_SECONDS. Return the first row not written, or None."""
        deadline = time.monotonic() + PART_SECONDS
        features = datasets.Features({**self.features, **CHECKSUM})
        # small batches: their rows are held in memory
        with contextlib.closing(ArrowWriter(path=str(path), features=features, writer_batch_size=32)) as writer:
            while row is not None:
                writer.write({**row, "crc32": _checksum(self._plain(row))})
                row = next(rows, None)
                if time.monotonic() > deadline:
                    break
            writer.finalize()
        return row

    def _plain(self, row: Row) -> list[object]:
        """Return the cells of a row in the order of the columns, lists as float32 arrays, as they are stored."""
        return [
            row[name] if row[name] is None or kind != FLOATS else np.ascontiguousarray(row[name], np.float32)
            for name, kind in self.features.items()
        ]

    def _exclude_damaged(self, wanted: Collection[str]) -> None:
        """Verify the checksums of the rows of these keys, and stop using rows that do not match."""
        lost: set[str] = set()
        values = pyarrow.array(list(wanted), "string")
        for path in sorted(self.folder.glob("*.arrow")):
            with contextlib.suppress(pyarrow.ArrowException, OSError, KeyError):  # as in `_open`
                rows, keys = _find_damaged(path, self.features, values)
                if rows:
                    self._damaged[path] = rows
                    lost.update(keys)
        if lost:
            self._open()
            count = sum(row < 0 for row in self.positions(sorted(lost)))
            if count and is_local_main_process():
                print(f"{counted(count, 'damaged row')} in the cache {self.folder}; computing again")

    def positions(self, keys: list[str]) -> np.ndarray:
        """Return the position of each key's row in the table, (keys,) int; -1 if there is none."""
        found = pyarrow.compute.index_in(pyarrow.array(keys, "string"), value_set=self._keys)
        return found.fill_null(-1).to_numpy()

    def rows(self, positions: np.ndarray, columns: list[str]) -> list[Row]:
        """Return these columns of the rows at these positions."""
        return self.table.table.select(columns).take(positions).to_pylist()

    def read(self, position: int, column: str) -> np.ndarray | None:
        """Return a cell of a column of lists as a flat read-only array; None if the cell is null.

        Training steps wait for this, and datasets' own formatting takes many times as long.
        """
        chunk = int(np.searchsorted(self._ends, position, side="right"))
        values, offsets, valid = self._lists(column)[chunk]
        row = int(position - self._ends[chunk] + len(valid))
        return values[offsets[row] : offsets[row + 1]] if valid[row] else None

    def _lists(self, column: str) -> list[tuple]:
        """Return a column of lists, each chunk split by `_split_lists`."""
        if column not in self._columns:
            self._columns[column] = [_split_lists(chunk) for chunk in self.table.column(column).chunks]
        return self._columns[column]


def _split_lists(chunk: typing.Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return all numbers of an Arrow array of lists, the offsets of the lists, and which of them are not null."""
    return chunk.values.to_numpy(), chunk.offsets.to_numpy(), chunk.is_valid().to_numpy(zero_copy_only=False)


# --- Checksums


def _checksum(cells: Iterable[object]) -> int:
    """Return the CRC-32 of a row, over the bytes of its arrays and the text of its other cells."""
    total = 0
    for cell in cells:
        total = zlib.crc32(cell.data if isinstance(cell, np.ndarray) else f"{cell}|".encode(), total)
    return total


def _without(keys: typing.Any, rows: list[int]) -> typing.Any:
    """Return an Arrow column of keys, null in these rows."""
    if not rows:
        return keys
    is_kept = np.ones(len(keys), bool)
    is_kept[rows] = False
    return pyarrow.compute.if_else(pyarrow.array(is_kept), keys, pyarrow.scalar(None, "string"))


def _find_damaged(path: Path, features: datasets.Features, wanted: typing.Any) -> tuple[list[int], list[str]]:
    """Return the rows of a file that have a wanted key and a wrong checksum, and their keys.

    The file is mapped into memory separately, so that the pages read here are released.
    """
    table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    if set(table.column_names) != {*features, *CHECKSUM}:
        return [], []
    table.validate(full=True)
    found = np.flatnonzero(pyarrow.compute.is_in(table.column("key"), value_set=wanted))
    columns = (_cells(table.column(name), kind, found) for name, kind in features.items())
    expected = table.column("crc32").take(pyarrow.array(found)).to_pylist()
    damaged = [
        (row, str(cells[0]))
        for row, crc32, *cells in zip(found.tolist(), expected, *columns)
        if _checksum(cells) != crc32
    ]
    return [row for row, _ in damaged], [key for _, key in damaged]


def _cells(column: typing.Any, kind: object, rows: np.ndarray) -> Iterator[object]:
    """Yield the cells of an Arrow column in these ascending rows, lists as views of its memory."""
    if kind != FLOATS:
        yield from column.take(pyarrow.array(rows)).to_pylist()
        return
    start = 0
    for chunk in column.chunks:
        values, offsets, valid = _split_lists(chunk)
        first, end = np.searchsorted(rows, (start, start + len(chunk)))
        for row in (rows[first:end] - start).tolist():
            yield values[offsets[row] : offsets[row + 1]] if valid[row] else None
        start += len(chunk)
