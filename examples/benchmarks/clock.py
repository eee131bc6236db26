"""Time the calls of some methods while other code runs."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch


class Clock:
    """Seconds spent inside the timed methods.

    Attributes:
        inside: the sum over all calls.
        first: when the first call began, by time.perf_counter; 0 before it.
        last: when the last call ended.
    """

    def __init__(self) -> None:
        self.inside = self.first = self.last = 0.0

    @contextlib.contextmanager
    def measure(self, owner: type, *names: str) -> Iterator[None]:
        """Time these methods of a class within the `with` block."""
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(mock.patch.object(owner, name, self._timed(getattr(owner, name))))
            yield

    def _timed(self, function: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            self.first = self.first or started
            try:
                return function(*args, **kwargs)
            finally:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()  # or the time would count where the result is waited for
                self.last = time.perf_counter()
                self.inside += self.last - started

        return timed
