"""Train on the quickstart's model and images within a part of examples/benchmarks/gpu_check.py."""

import csv
import shutil
from pathlib import Path

from accelerate.state import AcceleratorState

import train_hypernetwork
from examples.benchmarks.gpu_parts.processes import REPO, Settings
from hypernet.cli.training_options import parse_config

QUICKSTART = REPO / "examples" / "quickstart"
# a run without previews
BARE = ["--resolution=128", "--activation=swish", "--learning_rate=1e-3", "--train_batch_size=4", "--seed=1"]
BARE += [f"--pretrained_model_name_or_path={QUICKSTART / 'model'}", f"--train_data_dir={QUICKSTART / 'images'}"]


def run_folder(settings: Settings, name: str) -> Path:
    """Return the output folder of a run."""
    return settings.folder / "runs" / name


def flags_of(settings: Settings, name: str, *flags: str) -> list[str]:
    """Return the options of a run."""
    small = ["--resolution=64"] if settings.quick else []
    places = [f"--output_dir={run_folder(settings, name)}", f"--cache_dir={settings.folder / 'cache'}"]
    return [*flags, *small, *places, "--name=check", "--report_to=none"]


def train(settings: Settings, name: str, *flags: str, resume: bool = False) -> Path:
    """Train within this process; return the output folder. Without `resume`, an earlier run there is deleted."""
    AcceleratorState._reset_state(True)
    if not resume:
        shutil.rmtree(run_folder(settings, name), ignore_errors=True)
    train_hypernetwork.main(parse_config(flags_of(settings, name, *flags)))
    return run_folder(settings, name)


def read_column(path: Path, column: str) -> list[float]:
    """Return a column of a table."""
    with open(path, newline="", encoding="utf-8") as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]
