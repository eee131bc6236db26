"""Read the records in a run's folder: run.json, the hypernetwork's config.json, `best` and the checkpoints."""

import dataclasses
import typing
from pathlib import Path
from typing import Any

from hypernet.config import TrainingConfig
from hypernet.formats.load_save import WEIGHTS_NAME
from hypernet.utils.errors import UserError, one_line
from hypernet.utils.reading import read_json_object

RUN_FILE = "run.json"  # every option of the run


def is_run_folder(folder: Path) -> bool:
    """Return whether a training run wrote this folder."""
    return (folder / RUN_FILE).is_file()


def find_run_options(path: str | Path) -> dict[str, Any]:
    """Return the options of the run that wrote this folder, checkpoint or file; empty if no run did."""
    path = Path(path)
    for folder in (path.resolve(), *path.resolve().parents[:2]) if path.exists() else ():
        options = read_run_options(folder)
        if options:
            return options
    return {}


def read_run_options(folder: Path) -> dict[str, Any]:
    """Return the options in a run's folder; empty if there are none, or they cannot be read.

    Raises:
        UserError: if an option has an impossible value.
    """
    try:
        options = read_json_object(folder / RUN_FILE)
    except (OSError, ValueError):
        return {}
    fields = {field.name: field for field in dataclasses.fields(TrainingConfig)}
    for name in options.keys() & fields.keys():
        value, default = options[name], fields[name].default
        if value is not None and value != default and not _fits(value, fields[name].type):
            problem = f"{name} cannot be {one_line(repr(value), 60)}; no run wrote that"
            raise UserError(f"{folder / RUN_FILE}: {problem}")
    return options


def _fits(value: Any, annotation: Any) -> bool:
    """Return whether a value from JSON can be an option of this type. A text option may hold a number."""
    kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not type(None)]
    takes_list = any(typing.get_origin(kind) is list for kind in (*kinds, annotation))
    if takes_list and (isinstance(value, list) or str not in kinds):
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if bool in kinds:
        return isinstance(value, bool)
    if int in kinds or float in kinds:
        kind = (int, float) if float in kinds else int
        return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < 1 << 63
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def previewed_prompts(options: dict[str, Any]) -> list[str]:
    """Return the prompts that a run previewed, each once, from its recorded previews or else its options."""
    recorded = options.get("previews")
    prompts = [each.get("prompt") for each in recorded if isinstance(each, dict)] if isinstance(recorded, list) else []
    texts = [prompt for prompt in prompts if isinstance(prompt, str)]
    return list(dict.fromkeys(texts or options.get("validation_prompt") or []))


def is_best_state(folder: Path) -> bool:
    """Return whether the folder is the `best` of a run: its state with the lowest validation loss."""
    return folder.name == "best" and is_run_folder(folder.parent)


def read_trained_config(folder: Path) -> dict[str, Any] | None:
    """Return the config of the hypernetwork in a folder, or None if there is no hypernetwork in it."""
    if not (folder / WEIGHTS_NAME).is_file():
        return None
    try:
        config = read_json_object(folder / "config.json")
    except (OSError, ValueError):
        return None
    has_name = isinstance(config.get("name", ""), str) and isinstance(config.get("step", 0), int)
    return config if has_name and config.get("_class_name") == "Hypernetwork" else None


def find_optimizer_file(folder: Path, step: int) -> Path | None:
    """Return the optimizer state of a checkpoint, or of a run's checkpoint at `step`; None if there is none."""
    files = [place / "optimizer.bin" for place in (folder, folder / "checkpoints" / f"step-{step:06d}")]
    return next((file for file in files if file.is_file()), None)
