"""What the scripts share. Import it before anything else of diffusers: importing it makes the console quiet.

Remarks on packages that nobody needs here, and bars of loads that take a blink, are nothing that a user can act on.
"""

import argparse
import difflib
import errno
import logging
import os
import sys
import warnings

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warn when a process forks
os.environ.setdefault("WANDB_SILENT", "true")

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import transformers
from diffusers.utils import logging as diffusers_logging

from tqdm.auto import tqdm

from hypernet.utils.errors import OtherProcessError, UserError, is_first

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
diffusers_logging.disable_progress_bar()
for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):  # a console that has not every letter shows its code
        stream.reconfigure(errors="backslashreplace")
warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")  # diffusers passes it to the Hub's client


def say(accelerator, *lines):
    """Print on the main process, above a progress bar if there is one."""
    if accelerator.is_main_process:
        for line in lines:
            tqdm.write(line)


DISK_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


class ScriptParser(argparse.ArgumentParser):
    """argparse with the script's docstring as it stands, no abbreviations, and one line instead of its usage."""

    def __init__(self, docstring):
        super().__init__(
            description=docstring, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def error(self, message):
        message = message.removeprefix("argument ")
        words = message.removeprefix("unrecognized arguments: ").split()
        options = [option for action in self._actions for option in action.option_strings]
        near = difflib.get_close_matches(words[0], options, 1) if message.startswith("unrecognized") else []
        raise UserError(message + (f"; did you mean {near[0]}?" if near else "; --help lists what there is"))


def run_script(main, when_stopped="stopped"):
    """Run `main`; a mistake of the user ends it with one line and exit code 2, Ctrl-C with one line and 130."""
    try:
        main()
    except KeyboardInterrupt:
        print(f"\n{when_stopped}", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        if is_first() or isinstance(error, OtherProcessError):
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_TROUBLE:
            raise
        print(
            f"error: {error.filename or 'the disk'}: {error.strerror}; nothing that was there is lost", file=sys.stderr
        )
        sys.exit(2)
