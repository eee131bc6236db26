"""What the scripts share. Import it before anything else of diffusers: importing it makes the console quiet.

Remarks on packages that nobody needs here, and bars of loads that take a blink, are nothing that a user can act on.
"""

import logging
import os
import sys

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or tokenizers warn when a process forks
os.environ.setdefault("WANDB_SILENT", "true")

import transformers

from hypernet.errors import UserError

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


def run_script(main):
    """Run `main`; a mistake of the user ends it with one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
