"""Read the records in a run's folder: run.json, the hypernetwork's config.json, `best` and the checkpoints."""

import json
from pathlib import Path
from typing import Any

from hypernet.formats.load_save import WEIGHTS_NAME

RUN_FILE = "run.json"  # every option of the run


def is_run_folder(folder: Path) -> bool:
    """Return whether a training run wrote this folder."""
    return (folder / RUN_FILE).is_file()


def find_run_options(path: str | Path) -> dict[str, Any]:
    """Return the options of the run that wrote this folder, checkpoint or file; empty if no run did."""
    path = Path(path)
    for folder in (path.resolve(), *path.resolve().parents[:2]) if path.exists() else ():
        try:
            return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return {}


def is_best_state(folder: Path) -> bool:
    """Return whether the folder is the `best` of a run: its state with the lowest validation loss."""
    return folder.name == "best" and is_run_folder(folder.parent)


def read_trained_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of the hypernetwork in a folder, or None if there is no hypernetwork in it."""
    if not (folder / WEIGHTS_NAME).is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("_class_name") == "Hypernetwork" else None


def find_optimizer_file(folder: Path, step: int) -> Path | None:
    """Return the optimizer state of a checkpoint, or of a run's checkpoint at `step`; None if there is none."""
    files = [place / "optimizer.bin" for place in (folder, folder / "checkpoints" / f"step-{step:06d}")]
    return next((file for file in files if file.is_file()), None)
