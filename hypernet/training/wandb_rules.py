"""Check names and settings against the rules of W&B before a run starts. Imports no torch."""

import importlib.util
import os
import re
from collections.abc import Callable
from functools import partial

from hypernet.utils.errors import UserError, reason

RESERVED = "/\\#?%:"  # in ids, per the documentation of wandb.init; offline, W&B itself fails later or not at all
MAX_NAME = 128  # characters


def check_wandb_settings(project: str, run_name: str | None = None, artifact: str | None = None) -> None:
    """Check the names a run passes to W&B, and the WANDB_* environment variables; do nothing if W&B is not installed.

    Args:
        project: `--tracker_project_name`.
        run_name: `--run_name`.
        artifact: the hypernetwork's name, if it is to be logged as an artifact.

    Raises:
        UserError: for the first value that W&B refuses.
    """
    if importlib.util.find_spec("wandb") is None:
        return
    import wandb

    if not project.strip():
        raise UserError(f"--tracker_project_name {project!r}: W&B needs a name")
    _ask(f"--tracker_project_name {project}", lambda: wandb.Settings(project=project))
    _check_length(f"--run_name {run_name}", run_name)
    if artifact is not None:
        _ask(f"--name {artifact} with --log_artifact", lambda: wandb.Artifact(artifact_name(artifact), "hypernetwork"))
    for name, value in os.environ.items():
        if name.startswith("WANDB_"):
            shown = name if "KEY" in name or "TOKEN" in name else f"{name}={value}"
            _ask(shown, partial(wandb.Settings().update_from_env_vars, {name: value}))
    for name in ("WANDB_RUN_ID", "WANDB_NAME", "WANDB_RUN_GROUP"):
        _check_length(f"{name}={os.environ.get(name)}", os.environ.get(name))
    if not is_run_id(run_id := os.environ.get("WANDB_RUN_ID", "unset")):
        raise UserError(f"WANDB_RUN_ID={run_id}: W&B does not accept any of {' '.join(RESERVED)} in it")


def artifact_name(name: str) -> str:
    """Return the name of a hypernetwork's artifact. W&B accepts only ASCII letters, digits and . _ -"""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)


def is_run_id(text: str) -> bool:
    """Whether W&B accepts a text as the id of a run."""
    return 0 < len(text) <= MAX_NAME and text.strip() == text and text.isprintable() and not set(RESERVED) & set(text)


def _ask(option: str, build: Callable[[], object]) -> None:
    """Turn W&B's refusal of a value into a UserError."""
    import wandb

    try:
        build()
    except (ValueError, wandb.errors.Error) as error:
        details = getattr(error, "errors", None)  # pydantic's exception; its text has several lines
        why = details()[0]["msg"] if callable(details) else reason(error)
        raise UserError(f"{option}: W&B does not accept it ({why})") from None


def _check_length(option: str, text: str | None) -> None:
    if text is not None and len(text) > MAX_NAME:
        raise UserError(f"{option}: W&B accepts at most {MAX_NAME} characters")
