"""Run each part of examples/benchmarks/gpu_check.py in a process of its own, with a time limit."""

import contextlib
import dataclasses
import importlib
import json
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from hypernet.cli.script import quiet_libraries
from hypernet.utils.errors import one_line

REPO = Path(__file__).resolve().parents[3]
PACKAGE = "examples.benchmarks.gpu_parts"
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "true"}
SKIPPED = "skipped"  # key of the row that says why a part does not apply

Row = dict[str, Any]  # column -> text or number, ready for JSON


class Skipped(Exception):
    """A part does not apply to this machine; the message says what it needs."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the check.

    Attributes:
        function: "MODULE.FUNCTION" in this package; called with the settings and the arguments, it yields rows.
        seconds: its time limit.
        environment: variables to set before torch is imported.
    """

    function: str
    title: str
    seconds: float
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all parts receive.

    Attributes:
        device: cuda, mps or cpu.
        quick: whether to use tiny shapes and few steps.
        folder: where reports, logs and the runs' files go.
    """

    device: str
    quick: bool
    folder: Path

    def require_cuda(self) -> None:
        """Raise `Skipped` on any other device."""
        if self.device != "cuda":
            raise Skipped("needs CUDA")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
        status: ok, skipped, failed, timed out, cut short (when the time of the whole check ended), or not run.
        message: why; the last line of the error if it has failed.
        rows: the rows that it yielded, up to the failure if there was one.
    """

    status: str
    message: str = ""
    seconds: float = 0.0
    rows: list[Row] = dataclasses.field(default_factory=list)


def prepare_processes(settings: Settings) -> None:
    """Import the libraries before the first process is forked, so that none has to; do nothing if they are spawned."""
    if _start_method(settings) == "fork":
        for module in ("machine", "quickstart", "steps", "training"):
            importlib.import_module(f"{PACKAGE}.{module}")


def run_part(name: str, part: Part, settings: Settings, seconds: float) -> Outcome:
    """Run a part for at most this many seconds, and return how it ended. What it prints goes to logs/NAME.txt."""
    rows_file, log = settings.folder / "rows" / f"{name}.jsonl", settings.folder / "logs" / f"{name}.txt"
    for path in (rows_file, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
    context = multiprocessing.get_context(_start_method(settings))
    process = context.Process(target=_work, args=(part, settings, rows_file, log), name=name)
    started = time.monotonic()
    process.start()
    try:
        process.join(seconds)
        in_time = not process.is_alive()
    finally:
        _end(process)
    elapsed, rows = time.monotonic() - started, _read_rows(rows_file)
    if rows and SKIPPED in rows[-1]:
        return Outcome("skipped", rows.pop()[SKIPPED], elapsed, rows)
    if not in_time:
        return Outcome("timed out", f"stopped after {seconds:.0f} s", elapsed, rows)
    if process.exitcode:
        return Outcome("failed", f"{_last_line(log)} (exit code {process.exitcode})", elapsed, rows)
    return Outcome("ok", "", elapsed, rows)


def _start_method(settings: Settings) -> str:
    """Return how processes start: anew where there is a GPU, whose driver does not survive a fork."""
    return "fork" if settings.device == "cpu" and sys.platform == "linux" else "spawn"


def _end(process: multiprocessing.process.BaseProcess) -> None:
    """End a process if it is alive, and whatever it has started."""
    if process.is_alive():
        with contextlib.suppress(psutil.Error):  # it may end meanwhile
            for started in psutil.Process(process.pid).children(recursive=True):
                started.kill()
        process.kill()
    process.join()


def _work(part: Part, settings: Settings, rows_file: Path, log: Path) -> None:
    """Run a part in this process, which has been started for it."""
    quiet_libraries()
    _redirect_output(log)
    os.environ.update({**(ON_CPU if settings.device == "cpu" else {}), **part.environment})
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(REPO)  # the paths in the presets are relative to it
    module, function = part.function.split(".")
    with open(rows_file, "a", encoding="utf-8") as file:
        try:
            for row in getattr(importlib.import_module(f"{PACKAGE}.{module}"), function)(settings, **part.arguments):
                print(json.dumps(row), file=file, flush=True)
        except Skipped as reason:
            print(json.dumps({SKIPPED: str(reason)}), file=file, flush=True)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def _redirect_output(log: Path) -> None:
    """Send everything that this process and its libraries print to a file."""
    with open(log, "w", encoding="utf-8") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", buffering=1, closefd=False) for number in (1, 2))


def _read_rows(path: Path) -> list[Row]:
    """Return the rows of a part; the last line of a process that was killed may be incomplete."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


def _last_line(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "it printed nothing"
