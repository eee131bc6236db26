"""A console that ends no run: what cannot be written to stdout or stderr is dropped, what could control it is shown."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

# Characters by which a name or text from a file could color the console, move its cursor or reverse what it shows
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
CURSOR = re.compile(r"[\r\n]*(\x1b\[A)*")  # all that progress bars need


class SafeText(io.TextIOWrapper):
    """A text stream that writes control characters as their codes, other than those of progress bars."""

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        super().write(text if CURSOR.fullmatch(text) else CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text))
        return len(text)


class LossyFile(io.RawIOBase):
    """A raw file that drops what cannot be written: into a closed pipe, onto a full disk, to a closed terminal.

    Args:
        raw: the file to write to.
        report: called with the error, for the first of several failures in a row.
    """

    def __init__(self, raw: io.RawIOBase, report: Callable[[OSError], object]):
        self.raw, self.report, self.failing = raw, report, False

    def write(self, data: Any) -> int:
        """Write bytes, or drop them. Return how many were taken."""
        try:
            written = self.raw.write(data)
            self.failing = False
            return len(data) if written is None else written
        except OSError as error:
            if not self.failing:
                self.failing = True  # before the report, which may fail likewise
                self.report(error)
            return len(data)

    def writable(self) -> bool:
        """Return True."""
        return True

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self.raw.fileno()

    def isatty(self) -> bool:
        """Return whether the file is a terminal."""
        return self.raw.isatty()


def protect_console() -> None:
    """Make stdout and stderr drop what they cannot write, show characters they lack as codes, and exist at all.

    The first failure of stdout is reported on stderr. Streams of notebooks and test runners are not replaced.
    """
    for descriptor in range(3):  # a file opened later must not become stdout because that was closed
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = protected(sys.stdout, lambda error: print(_explain(error), file=sys.stderr))
    sys.stderr = protected(sys.stderr, lambda error: None)


def _explain(error: OSError) -> str:
    return f"note: stdout cannot be written to ({error.strerror or error}); what follows is not shown there"


def protected(stream: TextIO | None, report: Callable[[OSError], object]) -> TextIO:
    """Return a stream that writes to the same file through a `LossyFile`, or the same one if it is no plain file."""
    if stream is None:  # Python found its descriptor closed
        return open(os.devnull, "w", encoding="utf-8")
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between them
    if type(stream) is not io.TextIOWrapper or not isinstance(raw, io.RawIOBase) or isinstance(raw, LossyFile):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        return stream
    with contextlib.suppress(OSError):
        stream.flush()
    lossy = LossyFile(raw, report)
    return SafeText(
        lossy if raw is buffer else io.BufferedWriter(lossy),  # type: ignore[arg-type]
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=True,
        write_through=stream.write_through,
    )
