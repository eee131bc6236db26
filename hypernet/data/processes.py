"""The processes of a run, which share the work of filling a cache: one, several, or several on several machines."""

import collections
import os
import tempfile
import threading
import typing
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from tqdm.auto import tqdm

from hypernet.data.part_files import PROBE, exit_on_signals
from hypernet.utils.errors import OtherProcessError, UserError, one_line

BEAT_SECONDS = 0.2  # between heartbeats; at first, they are more frequent
KEPT = "the next run reuses what has been encoded"
WORKING, DONE, FAILED = range(3)

Value = typing.TypeVar("Value")
Exchange = Callable[[typing.Any], list[typing.Any]]  # a value of each process -> all of them, in the order of processes


class _Beat(typing.NamedTuple):
    """A heartbeat, which a process sends to the others."""

    state: int = WORKING
    steps: int = 0
    value: typing.Any = None  # the result, or the message of a failure


class _OthersFailed(Exception):
    """Another process has failed, so this one stops, too."""


class Processes:
    """All processes of a run, seen from one of them. By default, it is the only one.

    While they work, they exchange short heartbeats. So a share may take hours without a timeout, and a process that
    dies is noticed at once.

    Args:
        exchange: returns the values of all processes when all of them have called it. It fails if a process has died.
    """

    def __init__(self, index: int = 0, count: int = 1, exchange: Exchange = lambda value: [value]):
        self.index, self.count, self._exchange = index, count, exchange
        self._lowest: dict[Path, int] = {}  # results of `find_lowest`

    def share(
        self, work: Callable[[Callable[[], None]], Value], total: int = 0, description: str = "", unit: str = ""
    ) -> list[Value]:
        """Let each process do its part of the work, and return the results of all of them. All must call this.

        The main process shows one progress bar of the steps of all processes.

        Args:
            work: takes a function to call after each step. It may raise to stop the work.
            total: the steps of all processes together; 0 for no progress bar.
            description, unit: labels of the progress bar.

        Raises:
            UserError: the same on all processes if one has failed.
            OtherProcessError: if one has died.
        """
        is_silent = self.index > 0 or not total
        with tqdm(total=total, desc=description, unit=f" {unit}", disable=is_silent) as bar:
            if self.count == 1:
                return [work(bar.update)]
            return _Share(self._exchange, bar).do(work)

    def gather(self, value: Value) -> list[Value]:
        """Return the values of all processes."""
        return self.share(lambda _: value)

    def peers(self, value: typing.Any) -> list[int]:
        """Return which processes have the same value as this one, in ascending order."""
        return [index for index, other in enumerate(self.gather(value)) if other == value]

    def find_lowest(self, folder: Path) -> int:
        """Return the first process that sees the same folder at this path as this one.

        Machines may share a disk, or each may have its own folder there. A file of each process shows which it is: no
        machine can have looked for its name before, so the answer cannot come from the cache of a network file system.
        """
        if self.count == 1:
            return self.index
        if folder not in self._lowest:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=PROBE) as probe:
                names = self.gather(os.path.basename(probe.name))
                self._lowest[folder] = [(folder / name).exists() for name in names].index(True)
                self.gather(None)  # all have looked before the file is deleted
        return self._lowest[folder]


ALONE = Processes()


class _Share:
    """One process's share of the work, done in this thread while another thread exchanges heartbeats."""

    def __init__(self, exchange: Exchange, bar: tqdm):
        self._exchange, self._bar = exchange, bar
        self._beat, self._ended = _Beat(), threading.Event()
        self._is_over = False

    def do(self, work: Callable[[Callable[[], None]], Value]) -> list[Value]:
        """Return the results of all processes; errors are those of `Processes.share`."""
        error: BaseException | None = None
        with exit_on_signals(), ThreadPoolExecutor(1) as pool:
            beats: Future[list[_Beat]] = pool.submit(self._exchange_beats)
            try:
                self._end(DONE, work(self._count_step))
                beats.exception()  # waits here, so that a signal counts as a failure of this process
            except _OthersFailed:
                pass
            except BaseException as failure:
                error = failure
                self._end(FAILED, _describe(failure))
            if beats.exception() is not None:
                problem = "another process of this run died or stopped responding before training began"
                raise OtherProcessError(f"{problem}; {KEPT}") from None
        if error is not None and not isinstance(error, UserError):
            raise error
        found = beats.result()
        for beat in found:
            if beat.state == FAILED:
                raise UserError(beat.value)
        return [beat.value for beat in found]

    def _count_step(self) -> None:
        if self._is_over:
            raise _OthersFailed
        self._beat = self._beat._replace(steps=self._beat.steps + 1)

    def _end(self, state: int, value: typing.Any) -> None:
        self._beat = self._beat._replace(state=state, value=value)
        self._ended.set()

    def _exchange_beats(self) -> list[_Beat]:
        """Exchange heartbeats until every process is done or one has failed; return the last of each process."""
        pause = BEAT_SECONDS / 100
        try:
            while True:
                beats = [_Beat(*beat) for beat in self._exchange(tuple(self._beat))]
                self._bar.update(sum(beat.steps for beat in beats) - self._bar.n)
                states = collections.Counter(beat.state for beat in beats)
                if states[FAILED] or states[DONE] == len(beats):
                    return beats
                self._ended.wait(pause)
                pause = min(BEAT_SECONDS, 2 * pause)
        finally:
            self._is_over = True


def _describe(error: BaseException) -> str:
    """Return what the other processes report about an error of this one."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, KeyboardInterrupt | SystemExit):
        return f"another process was stopped; {KEPT}"
    return f"another process failed ({one_line(f'{type(error).__name__}: {error}')})"
