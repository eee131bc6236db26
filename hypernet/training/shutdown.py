"""SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM (a machine that is taken back) become a question to ask."""

import os
import signal
import threading

import psutil
import torch
from accelerate import Accelerator


class Interruption:
    """Within it the first signal is noted and the second SIGINT raises KeyboardInterrupt, as ever.

    The end of `accelerate launch`, which hands no signal on to a single process, counts as SIGTERM. Signals reach the main
    thread only; elsewhere nothing is noted.
    """

    def __init__(self, accelerator: Accelerator):
        self.several, self.noted = accelerator.num_processes > 1, 0
        self.reason = ""  # the signal's name, when a stop is wanted
        self._group, self._before, self._launcher = None, {}, _launcher()

    def __enter__(self):
        if self.several and torch.distributed.get_backend() != "gloo":
            self._group = torch.distributed.new_group(backend="gloo")  # to ask without waiting for the GPUs
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        self._group = None
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.noted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.noted = int(number)

    def wants_stop(self) -> bool:
        """Whether the run should end after this step; several processes agree on it."""
        if self._launcher is not None and os.getppid() != self._launcher:
            self.noted = self.noted or int(signal.SIGTERM)
        number = self.noted
        if self.several:
            most = torch.tensor(number)
            torch.distributed.all_reduce(most, torch.distributed.ReduceOp.MAX, self._group)
            number = int(most)
        if number:
            self.reason = signal.Signals(number).name
        return bool(number)


def _launcher() -> int | None:
    """The process number of the `accelerate launch` that has started this process, if one has."""
    parent = os.getppid()
    try:
        words = psutil.Process(parent).cmdline()
    except psutil.Error:
        return None
    return (
        parent if any("accelerate" in os.path.basename(word) or "accelerate." in word for word in words[:4]) else None
    )
