"""Collect what stays the same on a run's page while it trains: the command, the settings, the data."""

import base64
import collections
import contextlib
import dataclasses
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.data.image_io import on_background, read_image
from hypernet.training.accelerator import describe_accelerator
from hypernet.training.run import Run, RunImages
from hypernet.utils.errors import one_line

SCRIPT = "train_hypernetwork.py"
THUMBNAILS, THUMBNAIL_SIDE = 8, 192  # pixels, the longer side
MAX_SIZES, MAX_CAPTION, MAX_NOTES = 12, 300, 20


def describe_run(run: Run, images: RunImages, option_notes: Sequence[str]) -> dict[str, Any]:
    """Return the facts of a run as plain data for `RunPage`; only its name, except in the main process."""
    name = str(run.config.name)
    if not run.accelerator.is_main_process:
        return {"name": name}
    notes = [line for line in images.description.splitlines() if line.startswith(("note: ", "skipped: "))]
    notes += option_notes
    return {
        "name": name,
        "device": describe_accelerator(run.accelerator),
        "base": run.base.describe(),
        "command": training_command(run.config, run.accelerator.num_processes),
        "settings": list_settings(run.config),
        "has_previews": run.config.has_previews,
        "notes": [line.removeprefix("note: ") for line in notes[:MAX_NOTES]],
        "data": describe_images(run, images),
    }


def training_command(config: TrainingConfig, num_processes: int = 1) -> str:
    """Return the command that started this run, or one with the same options if no command line started it."""
    if Path(sys.argv[0]).name == SCRIPT:
        words = [sys.argv[0], *sys.argv[1:]]
    else:
        words = [SCRIPT]
        for name, value in config.changed(vars(config)).items():
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *(str(item).lower() if isinstance(item, bool) else str(item) for item in values)]
    is_launched = "LOCAL_RANK" in os.environ
    several = "--multi_gpu " * (num_processes > 1)  # on CPUs, too: otherwise, one process starts
    launcher = f"accelerate launch {several}--num_processes {num_processes}" if is_launched else "python"
    return f"{launcher} {shlex.join(words)}"


def list_settings(config: TrainingConfig) -> list[tuple[str, str, str]]:
    """Return the name, value and meaning of each option that differs from its default."""
    meanings = {field.name: field.metadata["help"] for field in dataclasses.fields(config)}
    changed = config.changed(meanings)
    shown = {key: value if isinstance(value, list) else [value] for key, value in changed.items()}
    return [(key, ", ".join(map(str, values)), meanings[key]) for key, values in shown.items()]


def describe_images(run: Run, images: RunImages) -> dict[str, Any]:
    """Return the number of images, the sizes they are trained at, and a few of them with their captions."""
    records, source = images.records, run.source
    sizes = collections.Counter(record.size for record in records)
    shown = []
    count = min(THUMBNAILS, len(records))
    for record in (records[number * len(records) // count] for number in range(count)):
        with contextlib.suppress(ValueError, OSError):  # unreadable now, although indexed before
            caption = next(iter(source.captions[record.row]), "")
            shown.append(
                {
                    "name": source.label(record.row),
                    "size": f"{record.width}×{record.height}",
                    "caption": one_line(caption, MAX_CAPTION),
                    "source": draw_thumbnail(source.read(record.row), run.config.alpha_background),
                }
            )
    return {
        "count": len(records),
        "validation": len(images.validation_records),
        "visits": images.batches.visits,
        "batches": len(images.batches),
        "sizes": [[f"{width}×{height}", count] for (width, height), count in sizes.most_common(MAX_SIZES)],
        "more_sizes": max(0, len(sizes) - MAX_SIZES),
        "images": shown,
    }


def draw_thumbnail(data: bytes, background: str) -> str:
    """Return an image file as a small JPEG in a data URL.

    Raises:
        ValueError: if it cannot be read.
    """
    image = on_background(read_image(data), background)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
