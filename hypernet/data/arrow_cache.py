"""Cache computed rows by key in the memory-mapped Arrow files of `datasets`."""

import contextlib
import os
import time
import typing
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from hypernet.utils.atomic_files import atomic_write, check_writable
from hypernet.utils.errors import UserError, is_local_main_process

CACHE_VERSION = 2  # increment it whenever the same inputs get encoded differently
FLOATS = datasets.List(datasets.Value("float32"))  # type of a column of flat arrays
PART_SECONDS = 30  # the most work lost when a long computation is stopped

Item = typing.TypeVar("Item")
Row = dict[str, typing.Any]


def cache_folder(cache_dir: str | None) -> Path:
    """Return `--cache_dir`, or a folder within the cache of datasets."""
    return Path(cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "hypernet"))


def check_cache_folder(cache_dir: str | None) -> None:
    """Raise UserError if the cache cannot be written."""
    folder = cache_folder(cache_dir)
    try:
        check_writable(folder)
    except OSError as error:
        option = f"--cache_dir {cache_dir}" if cache_dir else f"the cache folder {folder}"
        raise UserError(f"{option}: it cannot be written to ({error.strerror}); name another --cache_dir") from None


class RowCache:
    """A table with a column "key" and the columns `features`, in the .arrow files of a folder.

    Files are only added, atomically and under unique names, so any number of runs may share a folder. Rows are looked
    up by key in the memory-mapped files, so the rows of other runs cost next to nothing.
    """

    def __init__(self, folder: Path, features: dict):
        self.folder, self.features = folder, datasets.Features({"key": datasets.Value("string"), **features})
        self._open()

    def _open(self) -> None:
        parts = []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                part = datasets.Dataset.from_file(str(path))
                if part.features == self.features:
                    part.data.table.validate(full=True)  # a damaged file could crash the interpreter
                    parts.append(part)
            except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError):
                continue  # damaged: its rows are computed again
        empty = datasets.Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        self.table = datasets.concatenate_datasets(parts or [empty]).data
        self._columns: dict[str, list[tuple]] = {}
        self._ends = np.cumsum([len(chunk) for chunk in self.table.column("key").chunks])

    def fill(
        self,
        wanted: dict[str, Item],
        compute: Callable[[list[tuple[str, Item]]], Iterable[Row | None]],
        description: str,
        unit: str,
    ) -> None:
        """Compute the rows that are missing, with a progress bar.

        Args:
            wanted: key -> what `compute` needs for its row.
            compute: takes the (key, item) pairs that have no row, and yields the row of each (with its key), or None to
                store none, in any order.
            description, unit: labels of the progress bar.

        Raises:
            UserError: if the cache cannot be written.
        """
        missing = [item for item, row in zip(wanted.items(), self.positions(list(wanted))) if row < 0]
        if not missing:
            return
        bar_options = {"total": len(missing), "desc": description, "unit": f" {unit}"}
        try:
            with tqdm(iter(compute(missing)), **bar_options, disable=not is_local_main_process()) as bar:
                kept = (row for row in bar if row is not None)
                row = next(kept, None)
                while row is not None:
                    with atomic_write(self.folder / f"{uuid.uuid4().hex}.arrow") as temporary:
                        row = self._write_part(temporary, row, kept)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to ({error}); name another --cache_dir") from None
        self._open()

    def _write_part(self, path: Path, row: Row | None, rows: Iterator[Row]) -> Row | None:
        """Write `row` and those that follow for PART_SECONDS. Return the first row not written, or None."""
        deadline = time.monotonic() + PART_SECONDS
        # small batches: their rows are held in memory
        with contextlib.closing(ArrowWriter(path=str(path), features=self.features, writer_batch_size=32)) as writer:
            while row is not None:
                writer.write(row)
                row = next(rows, None)
                if time.monotonic() > deadline:
                    break
            writer.finalize()
        return row

    def positions(self, keys: list[str]) -> np.ndarray:
        """Return the position of each key's row in the table, (keys,) int; -1 if there is none."""
        found = pyarrow.compute.index_in(pyarrow.array(keys, "string"), value_set=self.table.column("key"))
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
        """Return a column of lists as a tuple per chunk: all numbers, the offsets of the lists, which are not null."""
        if column not in self._columns:
            chunks = self.table.column(column).chunks
            self._columns[column] = [
                (chunk.values.to_numpy(), chunk.offsets.to_numpy(), chunk.is_valid().to_numpy(zero_copy_only=False))
                for chunk in chunks
            ]
        return self._columns[column]
