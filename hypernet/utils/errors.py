"""Errors the user can fix, and which of several processes reports them."""

import os


class UserError(ValueError):
    """An error the user can fix. The message is one line: the option or file, what is wrong, what would be right."""


class OtherProcessError(UserError):
    """Another process of the run has died. Any process reports it, since the one that usually does may be dead."""


def is_local_main_process() -> bool:
    """Return whether this is the first process on its machine, the one that reports for all of them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
