"""Turn signals into a flag that the loop polls: SIGINT (Ctrl-C, a notebook's stop button), SIGTERM (a preempted
machine) and SIGHUP (a closed terminal)."""

import os
import signal
import threading
import types
from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from hypernet.utils.errors import reason

Share = TypeVar("Share")


class Interrupted(Exception):
    """Work that can be repeated later is abandoned, so that the run saves and stops at once."""


class ShutdownSignals:
    """A context in which the first signal is recorded and a second SIGINT raises KeyboardInterrupt.

    Create it before anything slow: `accelerate launch` does not pass signals on to a single process, so the
    launcher's death counts as SIGTERM. Signals reach only the main thread; in other threads nothing is recorded.
    """

    def __init__(self, accelerator: Accelerator):
        self.reason = ""  # the signal's name, once a stop is wanted
        self._received = 0
        self._distributed = accelerator.num_processes > 1
        self._group = None
        self._previous_handlers: dict = {}
        launched = "ACCELERATE_MIXED_PRECISION" in os.environ  # accelerate launch always sets it
        self._launcher = os.getppid() if launched else None

    def __enter__(self) -> "ShutdownSignals":
        if self._distributed and torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")  # communicates without waiting for the GPUs
        if threading.current_thread() is threading.main_thread():
            numbers = [signal.SIGINT, signal.SIGTERM]
            if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
                numbers.append(signal.SIGHUP)
            for number in numbers:
                self._previous_handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        self._group = None
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _record(self, number: int, frame: types.FrameType | None) -> None:
        if self._received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = int(number)

    def check(self) -> None:
        """Raise `Interrupted` if this process has received a signal; others may not have."""
        if self._number():
            raise Interrupted

    def stop_wanted(self) -> bool:
        """Whether the run should end after this step. All processes must ask, and get the same answer."""
        number = self._number()
        if self._distributed:
            highest = torch.tensor(number)
            torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX, self._group)
            number = int(highest)
        if number:
            self.reason = signal.Signals(number).name
        return bool(number)

    def _number(self) -> int:
        """Return the number of the signal that this process has received, or 0."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self._received = self._received or int(signal.SIGTERM)
        return self._received


def gather_shares(work: Callable[[], Share]) -> tuple[list[Share], str | None]:
    """Let every process do its share of some work, which must not communicate; return what all of them made.

    Returns:
        The shares of the processes where the work succeeded, and the first reason why it failed on another, or None.

    Raises:
        Interrupted: on all processes, if the work has raised it on one.
    """
    share: list[Share] = []
    problem: Exception | None = None
    try:
        share = [work()]
    except Exception as error:  # such as out of memory; returned below, where the other processes wait
        problem = error.with_traceback(None)  # the traceback would keep memory in use
    outcomes = gather_object([(share, type(problem) is Interrupted, problem and reason(problem))])
    if any(interrupted for _, interrupted, _ in outcomes):
        raise Interrupted
    return [each for made, *_ in outcomes for each in made], next((text for *_, text in outcomes if text), None)
