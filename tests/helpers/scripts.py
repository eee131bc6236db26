"""Run the scripts as a user would: as a subprocess, or within this process to save the seconds that imports take."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

from accelerate.state import AcceleratorState

from hypernet.cli.training_options import parse_config

REPO = Path(__file__).resolve().parents[2]


def run(*command, cwd=REPO, **kwargs):
    """Run a script of the repository as a user would; the finished process with its output."""
    command = [sys.executable, *map(str, command)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400, **kwargs)


def train_here(models_dir, images_dir, output_dir, *flags, model="epsilon") -> str:
    """The same within this process, without the seconds that imports take; what it said."""
    import train_hypernetwork

    AcceleratorState._reset_state(True)
    needed = {"pretrained_model_name_or_path": models_dir / model, "train_data_dir": images_dir}
    needed |= {"output_dir": output_dir, "cache_dir": models_dir / "cache", "resolution": 64, "report_to": "none"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train_hypernetwork.main(parse_config([*(f"--{key}={value}" for key, value in needed.items()), *map(str, flags)]))
    return said.getvalue()


def unexpected(stderr):
    """The lines on the console that are no progress bars."""
    return [line for line in stderr.splitlines() if line.strip() and not re.search(r"\d+/\d+ \[\d\d:\d\d<", line)]


def train(models_dir, images_dir, output_dir, *flags, model="epsilon", launch=()):
    """`train_hypernetwork.py` on a tiny model, in a process of its own."""
    done = run(
        *launch,
        REPO / "train_hypernetwork.py",
        "--pretrained_model_name_or_path",
        models_dir / model,
        "--train_data_dir",
        images_dir,
        "--output_dir",
        output_dir,
        "--cache_dir",
        models_dir / "cache",
        "--resolution=64",
        "--report_to=none",
        *flags,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
