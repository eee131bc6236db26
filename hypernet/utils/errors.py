"""The one kind of exception that is the user's to mend, and who of several processes tells it."""

import os


class UserError(ValueError):
    """Its message is one line that names the option or file, what is wrong with it and what would be right."""


class OtherProcessError(UserError):
    """Another process has died; whoever notices it tells, since it may be the first one that is dead."""


def is_local_main_process() -> bool:
    """Whether this is the first process of its machine, which speaks for all."""
    return os.environ.get("LOCAL_RANK", "0") == "0"
