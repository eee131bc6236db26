"""Runs of Weights & Biases: online with a login, offline without."""

import os
from pathlib import Path


def wandb_mode() -> str | None:
    """The mode to begin a run in: online with a login, else offline; None where WANDB_MODE says it to W&B itself."""
    if "WANDB_MODE" in os.environ:
        return None
    import wandb

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.errors.Error:
        return "offline"


def sync_line(run) -> str | None:
    """How to send an offline run to the site; None for one that is there already."""
    if run.settings.mode != "offline":
        return None
    folder = Path(run.dir).parent  # offline-run-DATE-ID; a resumed run has several
    several = len(list(folder.parent.glob(f"offline-run-*-{run.id}"))) > 1
    what = folder.parent / f"offline-run-*-{run.id}" if several else folder
    return f"W&B ran offline; after `wandb login`, send the run with: wandb sync {what}"
