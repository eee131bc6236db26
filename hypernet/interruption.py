"""SIGINT (Ctrl-C, a notebook's stop button) and SIGTERM (a machine that is taken back) become a question to ask."""

import signal
import threading

import torch
from accelerate import Accelerator

ASKING_STEPS = 10  # several processes agree this often


class Interruption:
    """Within it the first signal is noted and the second SIGINT raises KeyboardInterrupt, as ever.

    Signals reach the main thread only; elsewhere it notes nothing.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator, self.name = accelerator, None
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        if self.name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name

    def wants_stop(self, step: int) -> bool:
        """Whether the run should end after `step` steps. Several processes agree on it, every few steps."""
        if self.accelerator.num_processes == 1:
            return self.name is not None
        if step % ASKING_STEPS:
            return False
        noted = torch.tensor(float(self.name is not None), device=self.accelerator.device)
        return self.accelerator.reduce(noted, "sum").item() > 0
