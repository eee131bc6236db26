"""Errors the user can fix, and which of several processes reports them."""

import os
import re

MAX_MESSAGE = 600  # characters; about seven lines of a console
MAX_REASON = 200


class UserError(ValueError):
    """An error the user can fix. The message is one line: the option or file, what is wrong, what would be right.

    Whatever a file's name or content adds to it, it has no line breaks or control characters, and a limited length.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message, MAX_MESSAGE))


class OtherProcessError(UserError):
    """Another process of the run has died. Any process reports it, since the one that usually does may be dead."""


def is_local_main_process() -> bool:
    """Return whether this is the first process on its machine, the one that reports for all of them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def one_line(text: object, limit: int = MAX_REASON) -> str:
    """Return a text as one line of at most `limit` characters; a longer one loses its middle.

    Control characters, which could move a terminal's cursor or color it, become their escapes.
    """
    shown = str(text)
    if len(shown) > 4 * limit:  # so that nothing below processes millions of characters
        shown = f"{shown[: 2 * limit]} ... {shown[-2 * limit :]}"
    shown = re.sub(r"\s*[\r\n]\s*", " ", shown.strip())
    shown = "".join(
        " " if letter.isspace() else letter if letter.isprintable() else ascii(letter)[1:-1] for letter in shown
    )
    return shown if len(shown) <= limit else f"{shown[: limit * 2 // 3]} ... {shown[-limit // 4 :]}"


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number and the words after it: `one` for 1, else `many`, by default `one` with an s."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def quoted_if_needed(text: str) -> str:
    """Return `one_line` of a text, in quotes if spaces around it, or its being empty, would be invisible."""
    return one_line(text if text and text == text.strip() else f'"{text}"')


def reason(error: BaseException) -> str:
    """Return the message of an exception as one short line, or its class if it has none.

    That of an OSError leaves out its number and files: they may be temporary ones, and callers name the real one.
    """
    text = one_line(error.strerror if isinstance(error, OSError) and error.strerror else error)
    hint = "; it may be open in another program" if isinstance(error, PermissionError) else ""
    return (text or type(error).__name__) + hint
