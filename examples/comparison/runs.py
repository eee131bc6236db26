"""Train the runs of a comparison as subprocesses, one after the other or several at a time."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.config import TrainingConfig
from hypernet.formats.trained_folder import find_run_options
from hypernet.training.accelerator import choose_mixed_precision
from hypernet.training.init_from import load_init_from
from hypernet.training.run_options import read_record, would_repeat
from hypernet.training.wandb_rules import MAX_NAME
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError
from hypernet.utils.reading import read_json_object

SCRIPT = Path(__file__).resolve().parents[2] / "train_hypernetwork.py"


@dataclasses.dataclass
class Run:
    """One training run of a comparison."""

    name: str
    folder: Path
    options: dict[str, Any]  # from the grid; empty for a run trained elsewhere

    @property
    def recorded_options(self) -> dict[str, Any]:
        """All options, as the run itself recorded them; empty before it starts."""
        return find_run_options(self.folder)

    def parse_config(self) -> TrainingConfig:
        """Parse the options from the grid, and fill in the rest as the training script does.

        Raises:
            UserError: for an invalid value.
        """
        config = parse_config(options_to_flags(self.options))
        choose_mixed_precision(config)
        load_init_from(config)
        return config

    @property
    def is_finished(self) -> bool:
        """Whether the run has reached its end."""
        return (self.folder / "result.json").is_file()


class Runner:
    """Trains runs on the GPUs in turn, or on the CPU. Their output goes to logs/NAME.txt.

    Args:
        output_dir: folder of the comparison.
        jobs: how many runs may train at a time.
    """

    def __init__(self, output_dir: Path, jobs: int):
        self.output_dir, self.jobs = output_dir, jobs
        self.slots: queue.Queue[str | None] = queue.Queue()  # a GPU each, or None for the CPU
        gpus = _visible_gpus()
        for job in range(jobs):
            self.slots.put(gpus[job % len(gpus)] if gpus else None)
        self.processes: set[subprocess.Popen] = set()
        self.stopped, self.lock = False, threading.Lock()
        self._done_file = output_dir / "done.json"
        try:
            done = read_json_object(self._done_file)
            self.done = {name: options for name, options in done.items() if isinstance(options, dict)}
        except (OSError, ValueError):  # missing or damaged: finished runs then exit at once
            self.done = {}
        for folder in ("configs", "logs", "runs"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)

    def is_done(self, run: Run) -> bool:
        """Whether the run has finished with exactly these options."""
        return same_options(self.done.get(run.name), run.options) and run.is_finished

    def train(self, run: Run, overwrite: bool) -> str | None:
        """Train a run to its end. Return None, or why that failed."""
        gpu = self.slots.get()
        try:
            code = self._launch(run, gpu, overwrite and not self._would_repeat(run))
            if code == 2 and overwrite and _last_line(self._log(run)).startswith("error: --output_dir"):
                code = self._launch(run, gpu, overwrite=True)  # other images or another base model before
        except OSError as error:
            return f"it could not be started ({error.strerror or error})"
        finally:
            self.slots.put(gpu)
        if code is None:
            return "not started"
        if code:
            return _last_line(self._log(run)) or f"exit code {code}"
        with self.lock, atomic_write(self._done_file) as temporary:
            self.done[run.name] = identity(run.options)
            temporary.write_text(json.dumps(self.done, indent=1), encoding="utf-8")
        return None if run.is_finished else "stopped before its last step"

    @staticmethod
    def _would_repeat(run: Run) -> bool:
        """Whether the run would repeat the one that its folder holds, if there is one."""
        record = read_record(run.folder)
        return not record or would_repeat(record, parse_config(options_to_flags(run.options)))

    def _launch(self, run: Run, gpu: str | None, overwrite: bool) -> int | None:
        """Return the exit code, or None if the run was not started because the comparison is stopping."""
        config = self.output_dir / "configs" / f"{run.name}.yaml"
        with atomic_write(config) as temporary:
            temporary.write_text(yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
        command += [str(SCRIPT), "--config", str(config), *["--overwrite"] * overwrite]
        with open(self._log(run), "w", encoding="utf-8") as log:
            with self.lock:
                if self.stopped:
                    return None
                print(f"training {run.name}; its output is in {self._log(run)}", flush=True)
                process = subprocess.Popen(
                    command,
                    env=self.environment(gpu),
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # otherwise Ctrl-C would reach it twice: from the terminal and from here
                )
                self.processes.add(process)
            try:
                code = process.wait()
                while _group_is_running(process):  # the launcher exits at once; training saves a checkpoint first
                    time.sleep(0.1)
                return code
            finally:
                self.processes.discard(process)

    def environment(self, gpu: str | None) -> dict[str, str]:
        """Return the environment variables of a run on this GPU, or on its share of the CPU cores."""
        environment = {"WANDB_RUN_GROUP": self.output_dir.resolve().name[:MAX_NAME], **os.environ}
        environment.pop("WANDB_RUN_ID", None)  # otherwise W&B would treat all runs as one
        if gpu is not None:
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        elif self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
            # training overrides a single thread, which is also the launcher's default, but respects this limit
            environment.setdefault("OMP_THREAD_LIMIT", environment["OMP_NUM_THREADS"])
        return environment

    def stop(self) -> None:
        """Let the active runs save a checkpoint and exit; start no more. A second call ends them at once."""
        with self.lock:
            self.stopped = True
            for process in list(self.processes):
                if hasattr(os, "killpg"):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGINT)
                else:
                    process.terminate()

    def _log(self, run: Run) -> Path:
        return self.output_dir / "logs" / f"{run.name}.txt"


def identity(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that identify a run, whatever its name and folder."""
    return {key: value for key, value in options.items() if key not in ("output_dir", "run_name", "name")}


def same_options(options: dict[str, Any] | None, others: dict[str, Any]) -> bool:
    """Whether two runs have the same options, however these are written: 1 and "1", or True and "true"."""
    try:
        configs = [parse_config(options_to_flags(identity(each))) for each in (options or {}, others)]
    except UserError:  # options of an earlier version
        return False
    return configs[0] == configs[1]


def _visible_gpus() -> list[str]:
    """Return values for CUDA_VISIBLE_DEVICES, one per GPU: those already listed there, or the indices of all."""
    count = torch.cuda.device_count()
    listed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return listed[:count] if listed else [str(index) for index in range(count)]


def _group_is_running(process: subprocess.Popen) -> bool:
    """Whether any process of the group is still running."""
    if not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(log: Path) -> str:
    """Return the trainer's error line, or the last line if there is none."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:300]


def train_all(runs: list[Run], output_dir: Path, jobs: int, overwrite: bool = False) -> dict[str, str]:
    """Train the runs that are not done, `jobs` at a time. Return name -> reason for those that failed."""
    runner, failed = Runner(output_dir, jobs), {}
    waiting = [run for run in runs if not runner.is_done(run)]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of {len(runs)} runs already done")
    started, pool = time.monotonic(), concurrent.futures.ThreadPoolExecutor(jobs)
    with _signals_as_ctrl_c():
        try:
            futures = {pool.submit(runner.train, run, overwrite): run for run in waiting}
            for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
                run, problem = futures[future], future.result()
                if problem:
                    failed[run.name] = problem
                outcome = f"FAILED, {problem.removeprefix('error: ')}" if problem else "done"
                remaining = len(waiting) - number
                minutes = (time.monotonic() - started) / number * remaining / 60
                estimate = f" (about {minutes:.0f} min for the remaining {remaining})" if remaining else ""
                print(f"[{number}/{len(waiting)}] {run.name}: {outcome}{estimate}", flush=True)
        except KeyboardInterrupt:
            print("\nstopping once the runs have saved a checkpoint (Ctrl-C again to end them now)", file=sys.stderr)
            runner.stop()
            try:
                pool.shutdown(cancel_futures=True)
            except KeyboardInterrupt:
                runner.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)
    return failed


@contextlib.contextmanager
def _signals_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP (a shutdown, a closed terminal) like Ctrl-C, so that no run is orphaned."""
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    handlers = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
