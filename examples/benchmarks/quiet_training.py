"""Train within this process, without output."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any
from unittest import mock

from accelerate.state import AcceleratorState

import train_hypernetwork
from hypernet.cli.training_options import parse_config
from hypernet.training import setup
from hypernet.utils.errors import UserError


def train_quietly(flags: list[str], scored: bool = False) -> dict[str, Any]:
    """Train with these options, and return the figures of result.json.

    Args:
        scored: measure prompt fidelity and style distance, which can take longer than the training.

    Raises:
        UserError: if the training is stopped before its end.
    """
    config = parse_config(flags)
    unscored = mock.patch.object(setup, "prepare_scores", lambda *_: None)
    AcceleratorState._reset_state(True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.nullcontext() if scored else unscored:
            train_hypernetwork.main(config)
    result = Path(config.output_dir, "result.json")
    if not result.is_file():
        raise UserError(f"stopped before the end of {config.output_dir}")
    figures: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return figures
