"""Short training runs on the quickstart's model, without scores, and a search for the best learning rate."""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from examples.benchmarks.quiet_training import train_quietly
from examples.benchmarks.rate_robustness import GRID
from examples.benchmarks.settings_study.run import write_data
from examples.benchmarks.settings_study.settings import MODEL, STYLES, TRAIN_IMAGES
from hypernet.cli.training_options import options_to_flags

STEPS = 150


def parse_style_dir(text: str) -> tuple[str, Path]:
    """Return name and folder of a style, given as NAME=FOLDER.

    Raises:
        argparse.ArgumentTypeError: if one of them is missing.
    """
    name, _, folder = text.partition("=")
    if not name or not folder:
        raise argparse.ArgumentTypeError(f"{text}: write NAME=FOLDER")
    return name, Path(folder)


def add_style_options(parser: argparse.ArgumentParser, default: list[str]) -> None:
    """Add `--styles` and `--style_dir`, whose values `write_styles` takes."""
    names = "all" if default == list(STYLES) else " ".join(default)
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=default, help=f"default: {names}")
    parser.add_argument(
        "--style_dir",
        type=parse_style_dir,
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="another style: a folder of images, each with its caption in a .txt file",
    )


def write_styles(root: Path, hands: list[str], style_dirs: list[tuple[str, Path]]) -> list[str]:
    """Write the images of hands, and of further styles with their folders, below `root`; return all names."""
    styles: dict[str, Path | None] = {**dict.fromkeys(hands), **dict(style_dirs)}
    for style, images in styles.items():
        write_data(root / "data" / style, style, images)
    return list(styles)


def run_options(root: Path, style: str, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the training options of a run on a style that `write_styles` has written."""
    data = root / "data" / style
    return {
        "pretrained_model_name_or_path": str(MODEL),
        "train_data_dir": str(data / f"train_{TRAIN_IMAGES}.txt"),
        "validation_data_dir": str(data / "held_out"),
        "cache_dir": str(root / "cache"),
        "output_dir": str(folder),
        "name": style,
        "resolution": 128,
        "train_batch_size": 4,
        "max_train_steps": STEPS,
        "validation_loss_steps": STEPS,
        "checkpointing_steps": STEPS,
        "guard": False,
        "report_to": "none",
        **options,
    }


def train(options: Mapping[str, Any]) -> dict[str, Any]:
    """Train in this process, without output; a finished run is not repeated. Return the figures of result.json."""
    return train_quietly(options_to_flags(dict(options)))


def find_best(loss_at: Callable[[float], float], start: float) -> tuple[float, float]:
    """Return the learning rate of `GRID` with the lowest loss, and that loss.

    The search goes from the learning rate nearest to `start` on as long as the loss falls.
    """
    losses: dict[int, float] = {}

    def known_loss(number: int) -> float:
        if number not in losses:
            losses[number] = loss_at(GRID[number]) if 0 <= number < len(GRID) else math.inf
        return losses[number]

    best = min(range(len(GRID)), key=lambda number: abs(math.log(GRID[number] / start)))
    while known_loss(nearby := min((best - 1, best + 1), key=known_loss)) < known_loss(best):
        best = nearby
    return GRID[best], known_loss(best)


def loss_of(result: Mapping[str, Any]) -> float:
    """Return the validation loss of a run; infinite if it has none."""
    return math.inf if result["val_loss"] is None else float(result["val_loss"])
