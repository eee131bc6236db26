"""Run the scripts as a user would, in a process of their own, or within this process."""

import contextlib
import csv
import io
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import hypernet
from hypernet.cli.script import run_script
from hypernet.cli.training_options import parse_config
from tests.helpers.forked_python import forked_python

REPO = Path(__file__).resolve().parents[2]
# `--cpu --num_processes=2` starts one process, as of Accelerate 1.15; this starts two, on CPUs too
LAUNCH_TWO = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
LAUNCH_TWO += ["--mixed_precision=no", "--dynamo_backend=no"]

STARTED: list[subprocess.Popen] = []  # what `start_training` has started; a fixture ends it with the test


def run(*command, cwd=REPO, afresh=False, **kwargs):
    """Run a script of the repository as a user would; return the finished process with its output.

    Args:
        afresh: import everything, too. It takes ten seconds, and is for what a forked process cannot show.
    """
    command = [sys.executable, *map(str, command)]
    with contextlib.nullcontext() if afresh else forked_python():
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400, **kwargs)


def train_here(models_dir, images_dir, output_dir, *flags, model="epsilon") -> str:
    """Train on a tiny model within this process; return what it printed."""
    import train_hypernetwork

    AcceleratorState._reset_state(True)
    needed = {"pretrained_model_name_or_path": models_dir / model, "train_data_dir": images_dir}
    needed |= {"output_dir": output_dir, "cache_dir": models_dir / "cache", "resolution": 64, "report_to": "none"}
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        train_hypernetwork.main(
            parse_config([*(f"--{key}={value}" for key, value in needed.items()), *map(str, flags)])
        )
    return said.getvalue()


def unexpected(stderr):
    """Return the lines on the console that are not progress bars."""
    return [line for line in stderr.splitlines() if line.strip() and not re.search(r"\d+/\d+ \[\d\d:\d\d<", line)]


def train(models_dir, images_dir, output_dir, *flags, model="epsilon", launch=()):
    """Train on a tiny model in a process of its own; return the finished process."""
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


def command(models_dir, images_dir, output_dir, *flags):
    """Return the arguments of a training on the tiny model `epsilon`."""
    needed = {"--pretrained_model_name_or_path": models_dir / "epsilon", "--train_data_dir": images_dir}
    needed |= {"--output_dir": output_dir, "--resolution": 64, "--report_to": "none"}
    return [str(item) for pair in needed.items() for item in pair] + list(map(str, flags))


def start_training(models_dir, images_dir, output_dir, *flags, launch=(), until=None):
    """Start the script in a process of its own; return it once its log contains `until`, or its first losses are logged."""
    script = [sys.executable, *launch, str(REPO / "train_hypernetwork.py")]
    arguments = command(models_dir, images_dir, output_dir, "--cache_dir", models_dir / "cache", *flags)
    with open(f"{output_dir}.log", "w") as log, forked_python():
        process = subprocess.Popen([*script, *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=REPO)
    STARTED.append(process)
    deadline = time.monotonic() + 120
    while not (until in read_log(output_dir) if until else (output_dir / "hypernetwork_loss.csv").exists()):
        assert process.poll() is None and time.monotonic() < deadline, read_log(output_dir)[-3000:]
        time.sleep(0.01)
    return process


def read_log(output_dir):
    """Return what a process of `start_training` has printed."""
    return Path(f"{output_dir}.log").read_text()


def read_csv(path, column=None):
    """Return the rows of a table as dicts, or one column as floats."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if column is None else [float(row[column]) for row in rows]


def weights(path):
    """Return the state dict of the hypernetwork at `path`."""
    return hypernet.load(path).state_dict()


def same_weights(path_a, path_b):
    """Whether two hypernetworks are equal bit for bit."""
    a, b = weights(path_a), weights(path_b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def step_of(path):
    """Return the number of steps the hypernetwork at `path` was trained for."""
    return hypernet.load(path).config.step


def one_line_error(main, *arguments):
    """Call `main` as its script does; return the one line of its error, after checking exit code 2."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), pytest.raises(SystemExit) as end:
        run_script(lambda: main(list(map(str, arguments))))
    (line,) = stderr.getvalue().splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and not stdout.getvalue()
    return line.removeprefix("error: ")
