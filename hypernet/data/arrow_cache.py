"""Rows that are computed once and found again by their key, in memory-mapped Arrow files of `datasets`."""

import contextlib
import os
import time
import uuid
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from hypernet.utils.atomic_files import atomic_write, check_writable
from hypernet.utils.errors import UserError, is_local_main_process

CACHE_VERSION = 2  # to be raised when the same inputs are encoded in another way
FLOATS = datasets.List(datasets.Value("float32"))  # a column of flat arrays
PART_SECONDS = 30  # at most so much work is lost when a long computation is stopped


def cache_folder(cache_dir: str | None) -> Path:
    """`--cache_dir`, or a folder within the cache of datasets."""
    return Path(cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "hypernet"))


def check_cache_folder(cache_dir: str | None):
    """Raises: UserError if the cache cannot be written."""
    folder = cache_folder(cache_dir)
    try:
        check_writable(folder)
    except OSError as error:
        option = f"--cache_dir {cache_dir}" if cache_dir else f"the cache folder {folder}"
        raise UserError(f"{option}: it cannot be written to ({error.strerror}); name another --cache_dir") from None


class RowCache:
    """A table with a column "key" and the columns `features`, in as many files below `folder` as writes took.

    Files are only ever added, each whole and under a name of its own, so any number of runs may share a folder. Keys are
    looked up within the files, so that what other runs have left there costs next to nothing.
    """

    def __init__(self, folder: Path, features: dict):
        self.folder, self.features = Path(folder), datasets.Features({"key": datasets.Value("string"), **features})
        self._open()

    def _open(self):
        parts = []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                part = datasets.Dataset.from_file(str(path))
                if part.features == self.features:
                    part.data.table.validate(full=True)  # or a damaged file could crash the interpreter
                    parts.append(part)
            except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError):
                continue  # damaged on the disk: its rows are computed again
        empty = datasets.Dataset.from_dict({name: [] for name in self.features}, features=self.features)
        self.table = datasets.concatenate_datasets(parts or [empty]).data
        self._columns = {}
        self.ends = np.cumsum([len(chunk) for chunk in self.table.column("key").chunks])

    def fill(self, wanted: dict, compute, description: str, unit: str):
        """Have a row for each key of `wanted`, a dict from key to whatever `compute` needs.

        `compute(items)` gets those (key, item) pairs that have no row and yields for each its row, a dict with the key, or
        None if it shall have none, in any order. A progress bar counts them in `unit`s.
        """
        missing = [item for item, row in zip(wanted.items(), self.positions(wanted)) if row < 0]
        if not missing:
            return
        rows = iter(compute(missing))
        try:
            with tqdm(rows, total=len(missing), desc=description, unit=f" {unit}", disable=not is_local_main_process()) as bar:
                kept = (row for row in bar if row is not None)
                row = next(kept, None)
                while row is not None:
                    with atomic_write(self.folder / f"{uuid.uuid4().hex}.arrow") as temporary:
                        row = self._write_part(temporary, row, kept)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to ({error}); name another --cache_dir") from None
        self._open()

    def _write_part(self, path, row, rows):
        """Write `row` and those that follow, for a while; the first that has not been written, or None."""
        deadline = time.monotonic() + PART_SECONDS
        # few rows at a time, since those wait in memory
        with contextlib.closing(ArrowWriter(path=str(path), features=self.features, writer_batch_size=32)) as writer:
            while row is not None:
                writer.write(row)
                row = next(rows, None)
                if time.monotonic() > deadline:
                    break
            writer.finalize()
        return row

    def positions(self, keys) -> np.ndarray:
        """The position in the table of each key's row; -1 if there is none."""
        found = pyarrow.compute.index_in(pyarrow.array(keys, "string"), value_set=self.table.column("key"))
        return found.fill_null(-1).to_numpy()

    def rows(self, positions: np.ndarray, columns: list[str]) -> list[dict]:
        """These columns of some rows."""
        return self.table.table.select(columns).take(positions).to_pylist()

    def read(self, position: int, column: str) -> np.ndarray | None:
        """A list of numbers as a flat array, which must not be written to; None if there is none.

        (A training step waits for this, and datasets' own formatting takes many times as long.)
        """
        chunk = int(np.searchsorted(self.ends, position, side="right"))
        values, offsets, valid = self._lists(column)[chunk]
        row = int(position - self.ends[chunk] + len(valid))
        return values[offsets[row] : offsets[row + 1]] if valid[row] else None

    def _lists(self, column: str) -> list[tuple]:
        """A column of lists as (all their numbers, where each begins and ends, which there are), chunk by chunk."""
        if column not in self._columns:
            chunks = self.table.column(column).chunks
            self._columns[column] = [
                (chunk.values.to_numpy(), chunk.offsets.to_numpy(), chunk.is_valid().to_numpy(zero_copy_only=False))
                for chunk in chunks
            ]
        return self._columns[column]
