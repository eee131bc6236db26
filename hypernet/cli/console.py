"""Keep the console from ending a run: drop output that cannot be written, and escape control characters."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TextIO

# Characters with which a file's name or text could color the console, move its cursor or reverse its text
CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
CURSOR = re.compile(r"[\r\n]*(\x1b\[A)*")  # what progress bars write


class SafeText(io.TextIOWrapper):
    """A text stream that escapes control characters, except those of progress bars."""

    def write(self, text: str) -> int:
        """Write a text; return its length."""
        super().write(text if CURSOR.fullmatch(text) else CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text))
        return len(text)


class LossyFile(io.RawIOBase):
    """A raw file that drops bytes that cannot be written: to a closed pipe, a full disk or a closed terminal.

    Args:
        raw: the file to write to.
        report: called with the error, for the first of several failures in a row.
    """

    def __init__(self, raw: io.RawIOBase, report: Callable[[OSError], object]):
        self.raw, self.report, self.failing = raw, report, False

    def write(self, data: Any) -> int:
        """Write bytes, or drop them. Return how many were accepted."""
        try:
            written = self.raw.write(data)
            self.failing = False
            return len(data) if written is None else written
        except OSError as error:
            if not self.failing:
                self.failing = True  # set first, since the report may fail in the same way
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
    """Make stdout and stderr safe to write to.

    Closed ones are replaced, output that cannot be written is dropped, and characters that they cannot encode, or that
    control a console, are escaped. The first failure of stdout is reported on stderr. Streams of notebooks and test
    runners are not replaced.
    """
    for descriptor in range(3):  # otherwise, a file opened later could take the place of a closed stdout
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    sys.stdout = protected(sys.stdout, lambda error: print(_explain(error), file=sys.stderr))
    sys.stderr = protected(sys.stderr, lambda error: None)


def _explain(error: OSError) -> str:
    return f"note: stdout cannot be written to ({error.strerror or error}); later output is not shown there"


def protected(stream: TextIO | None, report: Callable[[OSError], object]) -> TextIO:
    """Return a stream that writes to the same file through a `LossyFile`; a stream that is not a plain file stays."""
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
