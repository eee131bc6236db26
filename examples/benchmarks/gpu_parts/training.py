"""The training loop, resuming and several GPUs, for examples/benchmarks/gpu_check.py."""

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import hypernet
from examples.benchmarks import step
from examples.benchmarks.gpu_parts.processes import REPO, Row, Settings, Skipped
from examples.benchmarks.gpu_parts.report import judge
from examples.benchmarks.gpu_parts.runs import BARE, flags_of, read_column, run_folder, train
from examples.benchmarks.gpu_parts.steps import half_precision, step_arguments
from hypernet.training.monitor import Monitor

PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}


def loop(settings: Settings) -> Iterator[Row]:
    """Yield the time of a step in the training loop and of a bare step, and the loop's synchronizations with the GPU."""
    steps, first = (6, 2) if settings.quick else (200, 80)  # until `first` the run times its steps, which synchronizes
    precision = half_precision(settings.device)
    flags = [*BARE, f"--mixed_precision={PRECISIONS[precision]}", f"--max_train_steps={steps}"]
    marks = follow_loop(settings, flags)[first:]
    in_loop = (marks[-1][0] - marks[0][0]) / (len(marks) - 1)
    yield {"measure": "step of the loop, ms", "value": 1000 * in_loop}
    args = step_arguments(settings, "quickstart", 4, 2 if settings.quick else 50)
    bare, _ = step.time_way(args, "training", "ours, swish")
    yield {"measure": "bare step (forward, backward, AdamW), ms", "value": 1000 * bare}
    yield {"measure": "the loop's share", "value": 1 - bare / in_loop}
    if settings.device != "cuda":
        yield {"measure": "synchronizations in a step", "value": "needs CUDA"}
        return
    torch.cuda.set_sync_debug_mode("warn")
    marks = follow_loop(settings, [*flags, "--logging_steps=10"])
    torch.cuda.set_sync_debug_mode("default")
    yield from count_synchronizations(marks, first)


def follow_loop(settings: Settings, flags: list[str]) -> list[tuple[float, list[str]]]:
    """Train; return for each step when it had been measured, and where it had synchronized: "file:line" each time."""
    marks: list[tuple[float, list[str]]] = []
    places: list[str] = []
    original = Monitor.measure

    def measure(monitor: Monitor, *args: Any) -> str | None:
        problem = original(monitor, *args)
        marks.append((time.perf_counter(), places.copy()))
        places.clear()
        return problem

    def note(message: Warning | str, category: type, file: str, line: int, *_: Any) -> None:
        if "synchronizing CUDA" in str(message):
            places.append(f"{re.sub('.*site-packages.', '', file.removeprefix(f'{REPO}{os.sep}'))}:{line}")

    with warnings.catch_warnings(), mock.patch.object(Monitor, "measure", measure):
        warnings.simplefilter("always")
        warnings.showwarning = note
        train(settings, "loop", *flags)
    return marks


def count_synchronizations(marks: list[tuple[float, list[str]]], first: int) -> Iterator[Row]:
    """Yield how often steps after the first ones synchronize, those that log and those that do not, and where."""
    numbered = list(enumerate((places for _, places in marks), 1))[first:-1]  # the last one also saves
    quiet = [places for number, places in numbered if number % 10]
    logging = [places for number, places in numbered if number % 10 == 0]
    most = max(map(len, quiet))
    yield judge({"measure": "synchronizations in a step that does not log, at most", "value": most}, "value", 0)
    yield {"measure": "synchronizations in a step that logs, median", "value": statistics.median(map(len, logging))}
    for place in sorted({place for places in quiet for place in places}):
        share = sum(place in places for places in quiet) / len(quiet)
        yield {"measure": "synchronizes without logging", "value": f"{place}, in {share:.0%} of the steps"}


# --- Resuming


def resume(settings: Settings) -> Iterator[Row]:
    """Yield how far the same run twice, and a resumed run, are from an uninterrupted one."""
    half = 2 if settings.quick else 20
    precision = f"--mixed_precision={PRECISIONS[half_precision(settings.device)]}"
    flags = [*BARE, precision, f"--checkpointing_steps={half}"]
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # as PyTorch's deterministic algorithms require
    for deterministic in (True,) if settings.quick else (False, True):
        with deterministic_algorithms(deterministic) as indeterminate:
            whole = train(settings, "whole", *flags, f"--max_train_steps={2 * half}")
            again = train(settings, "again", *flags, f"--max_train_steps={2 * half}")
            train(settings, "resumed", *flags, f"--max_train_steps={half}")
            resumed = train(settings, "resumed", *flags, f"--max_train_steps={2 * half}", resume=True)
        yield {
            "deterministic algorithms": "on" if deterministic else "off",
            "the same run twice": describe_difference(whole, again),
            "resumed": describe_difference(whole, resumed),
            "no deterministic implementation": ", ".join(sorted(indeterminate)),
        }


@contextlib.contextmanager
def deterministic_algorithms(on: bool) -> Iterator[set[str]]:
    """Let PyTorch use deterministic algorithms where it has them; yield the names of operations that have none."""
    names: set[str] = set()

    def note(message: Warning | str, *_: Any) -> None:
        if found := re.match(r"(\S+) does not have a deterministic implementation", str(message)):
            names.add(found[1])

    torch.use_deterministic_algorithms(on, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            yield names
    finally:
        torch.use_deterministic_algorithms(False)


def describe_difference(folder: Path, other: Path) -> str:
    """Return how far the weights of two runs are apart, relative to the largest weight."""
    a, b = hypernet.load(folder).state_dict(), hypernet.load(other).state_dict()
    if all(torch.equal(a[name], b[name]) for name in a):
        return "equal bit for bit"
    largest = max(weight.abs().max().item() for weight in a.values())
    apart = max((a[name] - b[name]).abs().max().item() for name in a)
    return f"{apart / largest:.1e} of the largest weight"


# --- Several GPUs


def two_gpus(settings: Settings) -> Iterator[Row]:
    """Yield how two processes over NCCL compare with one process and the same images per step."""
    settings.require_cuda()
    if torch.cuda.device_count() < 2:
        raise Skipped("needs two GPUs")
    steps = ["--mixed_precision=no", "--max_train_steps=40", "--logging_steps=1"]
    one = train(settings, "one_process", *BARE, *steps)
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launch += ["--mixed_precision=no", "--dynamo_backend=no", str(REPO / "train_hypernetwork.py")]
    shutil.rmtree(run_folder(settings, "two_processes"), ignore_errors=True)
    flags = flags_of(settings, "two_processes", *BARE, "--train_batch_size=2", *steps)
    subprocess.run([sys.executable, *launch, *flags], check=True)
    two = run_folder(settings, "two_processes")
    losses = [read_column(folder / "hypernetwork_loss.csv", "loss") for folder in (one, two)]
    speeds = [statistics.median(read_column(folder / "metrics.csv", "images_per_second")) for folder in (one, two)]
    yield {"measure": "images per second, one process", "value": speeds[0]}
    yield {"measure": "images per second, two processes", "value": speeds[1]}
    apart = max(abs(a - b) / a for a, b in zip(*losses))
    yield {"measure": "largest relative difference of losses", "value": apart}
    yield {"measure": "largest difference of weights", "value": describe_difference(one, two)}
