"""Rows that are computed once and found again by their key, in memory-mapped Arrow files of `datasets`."""

import os
import time
import uuid
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm

from hypernet.replacing import replacing

PART_SECONDS = 30  # at most so much work is lost when a long computation is stopped


def cache_folder(cache_dir: str | None) -> Path:
    """`--cache_dir`, or a folder within the cache of datasets."""
    return Path(cache_dir or os.path.join(datasets.config.HF_DATASETS_CACHE, "hypernet"))


class RowCache:
    """A table with a column "key" and the columns `features`, in as many files below `folder` as writes took.

    Files are only ever added, each whole and under a name of its own, so any number of runs may share a folder.
    """

    def __init__(self, folder: Path, features: dict):
        self.folder, self.features = Path(folder), datasets.Features({"key": datasets.Value("string"), **features})
        self.table, self.positions = None, {}
        self._open()

    def _open(self):
        parts = []
        for path in sorted(self.folder.glob("*.arrow")):
            try:
                part = datasets.Dataset.from_file(str(path))
                if part.features == self.features:
                    parts.append(part)
            except (pyarrow.ArrowInvalid, OSError):  # damaged on the disk: its rows are computed again
                continue
        if parts:
            self.table = datasets.concatenate_datasets(parts).data
            keys = self.table.column("key")
            self.ends = np.cumsum([len(chunk) for chunk in keys.chunks])
            self.positions = dict(zip(keys.to_pylist(), range(len(keys))))

    def fill(self, wanted: dict, compute, description: str):
        """Have a row for each key of `wanted`, a dict from key to whatever `compute` needs.

        `compute(items)` gets those (key, item) pairs that have no row and yields their rows, dicts with the key, in any
        order. A progress bar counts them.
        """
        missing = [(key, item) for key, item in wanted.items() if key not in self.positions]
        if not missing:
            return
        rows = iter(compute(missing))
        with tqdm(total=len(missing), desc=description, unit=" examples") as bar:
            row = next(rows, None)
            while row is not None:
                with replacing(self.folder / f"{uuid.uuid4().hex}.arrow") as temporary:
                    # few rows at a time, since those wait in memory
                    writer = ArrowWriter(path=str(temporary), features=self.features, writer_batch_size=32)
                    deadline = time.monotonic() + PART_SECONDS
                    while row is not None:
                        writer.write(row)
                        bar.update()
                        row = next(rows, None)
                        if time.monotonic() > deadline:
                            break
                    writer.finalize()
                    writer.close()
        self._open()

    def find(self, keys) -> np.ndarray:
        """The position in the table of each key's row."""
        return np.fromiter((self.positions[key] for key in keys), np.int64)

    def read(self, position: int, column: str) -> np.ndarray | None:
        """A list of numbers as a flat array, which must not be written to; None if there is none.

        (Arrow is asked directly: a training step waits for this, and datasets' formatting takes ten times as long.)
        """
        chunk = int(np.searchsorted(self.ends, position, side="right"))
        cells = self.table.column(column).chunk(chunk)
        cell = cells[int(position - self.ends[chunk] + len(cells))]
        return cell.values.to_numpy() if cell.is_valid else None

    def forget_keys(self):
        """Let go of the keys; afterwards rows can only be read."""
        self.positions = {}
