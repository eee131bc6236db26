"""How every script starts and ends: a quiet console, one-line errors, exit codes."""

import argparse
import errno
import logging
import os
import sys
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

from hypernet.cli.console import protect_console
from hypernet.cli.number_types import use_plain_numbers
from hypernet.cli.parse_errors import check_swallowed, explain_missing
from hypernet.cli.unknown_options import explain_rest
from hypernet.utils.atomic_files import check_writable
from hypernet.utils.errors import OtherProcessError, UserError, is_local_main_process, one_line, reason
from hypernet.utils.user_paths import expand_home, path_problem

# Make waiting OpenMP threads (of GCC; of LLVM and Intel) yield their core soon, so that several runs on one machine do
# not slow each other down
PASSIVE_WAITING = {"GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": "1"}
DISK_ERRORS = {errno.ELOOP, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
DISK_ERRORS |= {errno.ENAMETOOLONG}
Result = typing.TypeVar("Result")


def quiet_libraries() -> None:
    """Silence output that users cannot act on. Call it before diffusers and transformers are imported."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # tokenizers warn when a process forks
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("WANDB_SILENT", "true")
    for name, value in PASSIVE_WAITING.items():  # read once, when torch is imported
        os.environ.setdefault(name, value)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers passes it to the Hub client
    protect_console()


def _quiet_loading() -> None:
    """Hide the warnings and progress bars of loading models, if the libraries that show them are loaded."""
    if "transformers" in sys.modules:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()


class ScriptParser(argparse.ArgumentParser):
    """argparse that shows the script's docstring verbatim, accepts no abbreviations and reports errors in one line."""

    def __init__(self, docstring: str | None):
        super().__init__(
            description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        use_plain_numbers(self)

    def error(self, message: str) -> typing.NoReturn:
        """Raise a UserError."""
        raise UserError(f"{explain_missing(message)}; --help lists all options")

    def parse_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        """Parse as argparse does; for unknown options and stray words, raise a UserError that says what was meant."""
        arguments = expand_home(sys.argv[1:] if args is None else args)
        parsed, rest = self.parse_known_args(arguments, namespace)
        check_swallowed(self, parsed)
        if rest:
            raise UserError(explain_rest(self, arguments, rest))
        return parsed

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def,override]
        """Parse as argparse does, with `~` for the home folder in every path."""
        return super().parse_known_args(expand_home(sys.argv[1:] if args is None else args), namespace)


def check_output_folder(folder: Path, option: str) -> None:
    """Create a script's output folder.

    Args:
        option: the option that names it, with its value, for messages: "--output_dir output/grid".

    Raises:
        UserError: if no file can be written in it, or its path is probably a mistake.
    """
    if problem := path_problem(str(folder)):
        raise UserError(f"{option}: {problem}")
    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(f"{option}: it is not writable ({error.strerror})") from None


def check_output_file(path: Path, option: str) -> None:
    """Create the folder of a script's output file; see `check_output_folder`."""
    if problem := path_problem(str(path)):
        raise UserError(f"{option}: {problem}")
    check_output_folder(path.parent, option)


def run_script(main: Callable[[], Result], when_stopped: str = "stopped") -> Result:
    """Return what `main` returns. A user error ends the process with one line and exit code 2, Ctrl-C with 130."""
    protect_console()
    _quiet_loading()
    try:
        return main()
    except KeyboardInterrupt:
        print(f"\n{when_stopped}", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if is_local_main_process() or isinstance(error, OtherProcessError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = one_line(error.filename or "the disk")
        print(f"error: {where}: {reason(error)}; existing files are intact", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not str(error).startswith("Symlink loop"):  # of pathlib, before Python 3.13
            raise
        print(f"error: {one_line(error)}: the symbolic links form a loop", file=sys.stderr)
        sys.exit(2)
