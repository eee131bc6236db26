"""Report failures that do not end a run: of previews, plots, trackers and tables."""

import contextlib
from collections.abc import Iterator

from accelerate import Accelerator

from hypernet.training.accelerator import print_main
from hypernet.utils.errors import reason


class Failures:
    """Collects the failures of a run that continues.

    Attributes:
        lines: the printed lines, for result.json, since the console may fail, too.
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.lines: list[str] = []
        self._failing: set[str] = set()

    def report(self, line: str | None) -> None:
        """Print a line on the main process, if there is one."""
        if line and self.accelerator.is_main_process:
            self.lines.append(line)
            print_main(self.accelerator, line)

    @contextlib.contextmanager
    def tolerate(self, what: str) -> Iterator[None]:
        """Turn an exception in the block into one line; print only the first of several in a row for the same `what`.

        The block must not communicate with other processes, which would wait for this one after a failure.

        Args:
            what: the start of the line, such as "loss.png could not be drawn".
        """
        try:
            yield
        except Exception as error:
            if what not in self._failing:
                self.report(f"{what} ({reason(error)}); the run continues")
            self._failing.add(what)
        else:
            self._failing.discard(what)
