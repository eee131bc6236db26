"""Cache computed rows by key in memory-mapped Arrow files, which several runs, processes and machines may share."""

import contextlib
import functools
import hashlib
import itertools
import os
import time
import typing
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.compute
from datasets.arrow_writer import ArrowWriter

from hypernet.data.checksums import (
    CHECKSUM,
    FLOATS,
    find_damaged_rows,
    open_table,
    row_checksum,
    split_lists,
    without_rows,
)
from hypernet.data.image_io import map_in_threads
from hypernet.data.part_files import new_part_files, remove_abandoned
from hypernet.data.processes import ALONE, Processes
from hypernet.utils.atomic_files import atomic_write, check_writable, free_space
from hypernet.utils.errors import UserError, counted
from hypernet.utils.numbers import size_text

CACHE_VERSION = 2  # increment it whenever the same inputs get encoded differently
PART_SECONDS = 30  # the most work lost when a long computation is killed
VISIBLE_SECONDS = 60  # until a file that another machine has written must be there

Item = typing.TypeVar("Item")
Pairs = list[tuple[str, Item]]  # key and item of each row to compute
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

    Files are only added, atomically and under unique names, so any number of runs, processes and machines may share a
    folder. Rows are looked up by key in the memory-mapped files, so the rows of other runs cost next to nothing. Each
    row has a checksum; `fill` verifies those of the rows that a run needs, before they are used.

    Args:
        processes: those that fill the cache together. Each opens it.
    """

    def __init__(self, folder: Path, features: dict, processes: Processes = ALONE):
        self.folder, self.features = folder, datasets.Features({"key": datasets.Value("string"), **features})
        self.processes = processes
        self._names: set[str] = set()  # of the files
        self._damaged: dict[str, list[int]] = {}  # file name -> its rows with a wrong checksum
        self._open()

    def _open(self, names: Iterable[str] = ()) -> None:
        """Open the files of the folder and those with these names, which a network file system may not list yet."""
        self._names.update(names, (path.name for path in self.folder.glob("*.arrow")))
        schema = self.features.arrow_schema
        tables, keys = [schema.empty_table()], []
        self._files: list[tuple[str, int]] = []  # name and number of rows, in the order of the table
        for name in sorted(self._names):
            try:
                table = open_table(self.folder / name)
                found = datasets.Features.from_arrow_schema(table.schema)
                if {**found, **CHECKSUM} == {**self.features, **CHECKSUM}:
                    tables.append(table.select(list(self.features)).cast(schema))
                    keys += without_rows(table.column("key"), self._damaged.get(name, [])).chunks
                    self._files.append((name, len(table)))
            except Exception:  # the libraries raise whatever a damaged file leads them to
                continue  # its rows are computed again
        self.table = pyarrow.concat_tables(tables)
        self._keys = pyarrow.chunked_array(keys, "string")
        self._columns: dict[str, list[tuple]] = {}
        self._ends = np.cumsum([len(chunk) for chunk in self.table.column("key").chunks])

    def fill(
        self,
        wanted: dict[str, Item],
        compute: Callable[[Pairs], Iterable[Row | None]],
        description: str,
        unit: str,
        batches: Callable[[Pairs], list[Pairs]] | None = None,
        check: Callable[[Pairs], None] | None = None,
    ) -> None:
        """Compute the rows that are missing or damaged, with a progress bar.

        Processes that see the same folder and need the same rows share them out, so that each row is computed once.
        A row does not depend on the number of processes: what is shared out are whole batches.

        Args:
            wanted: key -> what `compute` needs for its row.
            compute: takes the (key, item) pairs of some batches, and yields the row of each (with its key), or None to
                store none, in any order.
            description, unit: labels of the progress bar.
            batches: divides the pairs that have no row into batches, those of some batches into the same ones; by
                default, each is one.
            check: takes all pairs that have no row, before the first is computed; may raise UserError.

        Raises:
            UserError: if the cache cannot be written, or as `compute` and `check` do.
        """
        processes, place = self.processes, self.processes.find_lowest(self.folder.parent)
        listed = processes.gather((place, self._names))
        if new := set[str]().union(*(names for other, names in listed if other == place)) - self._names:
            self._open(new)
        self._exclude_damaged(wanted, place)
        missing = [item for item, row in zip(wanted.items(), self.positions(list(wanted))) if row < 0]
        group = place, _digest(key for key, _ in missing)
        groups = processes.gather((group, len(missing)))
        if not any(count for _, count in groups):
            return
        peers = [index for index, (other, _) in enumerate(groups) if other == group]
        divided = batches(missing) if batches else [[pair] for pair in missing]
        share = list(itertools.chain(*divided[peers.index(processes.index) :: len(peers)]))

        def work(step: Callable[[], None]) -> tuple[list[str], set[str]]:
            if check:
                check(missing)
            return self._write_rows(share, compute, step) if share else ([], set())

        results = processes.share(work, sum(dict(groups).values()), description, unit)
        files = [name for (names, _), ((other, _), _) in zip(results, groups) if other == place for name in names]
        self._open(files)
        without = set[str]().union(*(results[peer][1] for peer in peers))
        processes.share(lambda _: self._wait_for([key for key, _ in missing if key not in without]))

    def _wait_for(self, keys: list[str]) -> None:
        """Wait until the rows of these keys can be read. A network file system may take a moment."""
        deadline = time.monotonic() + (VISIBLE_SECONDS if self.processes.count > 1 else 0)
        while (self.positions(keys) < 0).any():
            if time.monotonic() >= deadline:
                raise UserError(f"{self.folder}: rows just written there cannot be read; choose another --cache_dir")
            time.sleep(1)
            self._open()

    def _write_rows(
        self, share: Pairs, compute: Callable[[Pairs], Iterable[Row | None]], step: Callable[[], None]
    ) -> tuple[list[str], set[str]]:
        """Compute rows and write them, even if an error, a signal or another process stops this early.

        Returns:
            The names of the new files, and the keys that have no row.
        """
        names: list[str] = []
        without = {key for key, _ in share}
        errors: list[BaseException] = []

        def rows() -> Iterator[Row]:
            try:
                for row in compute(share):
                    if row is not None:
                        yield row
                        without.discard(row["key"])
                    step()
            except BaseException as error:  # raised below, once the rows before it are on the disk
                errors.append(error)

        try:
            kept = rows()
            row = next(kept, None)
            with new_part_files(self.folder) as paths:
                while row is not None:
                    path = next(paths)
                    with atomic_write(path) as temporary:
                        row = self._write_part(temporary, row, kept)
                    names.append(path.name)
        except OSError as error:
            raise UserError(f"{self.folder} cannot be written to ({error}); name another --cache_dir") from None
        if errors:
            raise errors[0]
        return names, without

    def _write_part(self, path: Path, row: Row | None, rows: Iterator[Row]) -> Row | None:
        """Write `row` and those that follow for PART_SECONDS. Return the first row not written, or None."""
        deadline = time.monotonic() + PART_SECONDS
        features = datasets.Features({**self.features, **CHECKSUM})
        # small batches: their rows are held in memory
        with contextlib.closing(ArrowWriter(path=str(path), features=features, writer_batch_size=32)) as writer:
            while row is not None:
                writer.write({**row, "crc32": row_checksum(self._plain(row))})
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

    def _exclude_damaged(self, wanted: Collection[str], place: int) -> None:
        """Verify the checksums of the rows of these keys, and stop using rows that do not match.

        Each process verifies a part of them.
        """
        keys = list(wanted)
        peers = self.processes.peers((place, _digest(keys)))
        before = self.positions(keys) >= 0
        while True:
            used = np.unique(self.positions(keys))
            part = np.array_split(used[used >= 0], len(peers))[peers.index(self.processes.index)]
            found = self.processes.share(functools.partial(self._find_damaged, part))
            if not any(found):
                break
            for name, rows in (each for peer in peers for each in found[peer]):
                self._damaged.setdefault(name, []).extend(rows)
            self._open()  # an undamaged row of the same key may be found, and is verified next
        count = int((before & (self.positions(keys) < 0)).sum())
        if count and self.processes.index == peers[0]:
            print(f"{counted(count, 'damaged row')} in the cache {self.folder}; computing again")

    def _find_damaged(self, positions: np.ndarray, step: Callable[[], None]) -> list[tuple[str, list[int]]]:
        """Return the names of files with damaged rows among those at these ascending positions, and the rows."""
        ends = np.cumsum([0, *(length for _, length in self._files)])
        places = np.searchsorted(positions, ends)
        jobs = [
            (name, positions[first:last] - start)
            for (name, _), start, first, last in zip(self._files, ends, places, places[1:])
            if first < last
        ]

        def verify(job: tuple[str, np.ndarray]) -> tuple[str, list[int]]:
            name, rows = job
            with contextlib.suppress(pyarrow.ArrowException, OSError, KeyError):  # as in `_open`
                return name, find_damaged_rows(self.folder / name, self.features, rows)
            return name, []

        return [(name, rows) for name, rows in map_in_threads(verify, jobs) if rows]

    def positions(self, keys: list[str]) -> np.ndarray:
        """Return the position of each key's row in the table, (keys,) int; -1 if there is none."""
        found = pyarrow.compute.index_in(pyarrow.array(keys, "string"), value_set=self._keys)
        return found.fill_null(-1).to_numpy()

    def rows(self, positions: np.ndarray, columns: list[str]) -> list[Row]:
        """Return these columns of the rows at these positions."""
        return self.table.select(columns).take(positions).to_pylist()

    def read(self, position: int, column: str) -> np.ndarray | None:
        """Return a cell of a column of lists as a flat read-only array; None if the cell is null.

        Training steps wait for this, and datasets' own formatting takes many times as long.
        """
        chunk = int(np.searchsorted(self._ends, position, side="right"))
        values, offsets, valid = self._lists(column)[chunk]
        row = int(position - self._ends[chunk] + len(valid))
        return values[offsets[row] : offsets[row + 1]] if valid[row] else None

    def _lists(self, column: str) -> list[tuple]:
        """Return a column of lists, each chunk split by `split_lists`."""
        if column not in self._columns:
            self._columns[column] = [split_lists(chunk) for chunk in self.table.column(column).chunks]
        return self._columns[column]


def _digest(keys: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for key in keys:
        digest.update(f"{key}\0".encode(errors="surrogatepass"))
    return digest.hexdigest()
