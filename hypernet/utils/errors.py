"""Errors the user can fix, and which of several processes reports them."""

import os
import re

MAX_MESSAGE = 600  # characters; some seven lines of a console
MAX_REASON = 200


class UserError(ValueError):
    """An error the user can fix. The message is one line: the option or file, what is wrong, what would be right.

    Whatever a file's name or content puts into it, it has no line breaks or control characters and is not endless.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message, MAX_MESSAGE))


class OtherProcessError(UserError):
    """Another process of the run has died. Any process reports it, since the one that usually does may be dead."""


def is_local_main_process() -> bool:
    """Return whether this is the first process on its machine, the one that reports for all of them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def one_line(text: object, limit: int = MAX_REASON) -> str:
    """Return a text as one line of at most `limit` characters, the middle left out where it is longer.

    Control characters, which could move a terminal's cursor or color it, become their escapes.
    """
    shown = str(text)
    if len(shown) > 4 * limit:  # nothing below is done for each of a million characters
        shown = f"{shown[: 2 * limit]} ... {shown[-2 * limit :]}"
    shown = re.sub(r"\s*[\r\n]\s*", " ", shown.strip())
    shown = "".join(
        " " if letter.isspace() else letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown
    )
    return shown if len(shown) <= limit else f"{shown[: limit * 2 // 3]} ... {shown[-limit // 4 :]}"


def reason(error: BaseException) -> str:
    """Return the message of an exception as one short line; its class where it has none."""
    return one_line(error) or type(error).__name__
