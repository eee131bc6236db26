"""Make runs of the training one after the other, or several at a time, each a process of its own."""

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
from pathlib import Path

import torch
import yaml

from hypernet.formats.trained_folder import training_options
from hypernet.utils.atomic_files import atomic_write

SCRIPT = Path(__file__).resolve().parents[2] / "train_hypernetwork.py"


@dataclasses.dataclass
class Run:
    """A run of the training: its name among the others, its folder, its options (none if it is there already)."""

    name: str
    folder: Path
    options: dict

    @property
    def told(self) -> dict:
        """All its options, as the run itself has written them down."""
        return training_options(str(self.folder))


class Runner:
    """Runs that take their turns on the GPUs, or on the CPU; what they say goes to logs/NAME.txt."""

    def __init__(self, output_dir: Path, jobs: int):
        self.output_dir, self.jobs, self.places = output_dir, jobs, queue.Queue()
        gpus = _gpus()
        for job in range(jobs):
            self.places.put(gpus[job % len(gpus)] if gpus else None)
        self.running, self.stopped, self.lock = set(), False, threading.Lock()
        self._done_file = output_dir / "done.json"
        self.done = json.loads(self._done_file.read_text(encoding="utf-8")) if self._done_file.is_file() else {}
        for folder in ("configs", "logs", "runs"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)

    def is_done(self, run: Run) -> bool:
        return self.done.get(run.name) == identity(run.options) and (run.folder / "result.json").is_file()

    def make(self, run: Run, overwrite: bool) -> str | None:
        """Train; why that failed, or None."""
        place = self.places.get()
        try:
            code = self._train(run, place, overwrite)
        except OSError as error:
            return f"it could not be begun ({error.strerror or error})"
        finally:
            self.places.put(place)
        if code is None:
            return "not begun"
        if code:
            return _last_line(self._log(run)) or f"exit code {code}"
        with self.lock, atomic_write(self._done_file) as temporary:
            self.done[run.name] = identity(run.options)
            temporary.write_text(json.dumps(self.done, indent=1), encoding="utf-8")
        return None if (run.folder / "result.json").is_file() else "stopped before its end"

    def _train(self, run, place, overwrite) -> int | None:
        """The exit code; None if it was not begun, since all are to stop."""
        config = self.output_dir / "configs" / f"{run.name}.yaml"
        before = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
        renew = ["--overwrite"] if overwrite and identity(before) != identity(run.options) else []
        with atomic_write(config) as temporary:
            temporary.write_text(yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True), encoding="utf-8")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
        command += [str(SCRIPT), "--config", str(config), *renew]
        with open(self._log(run), "w", encoding="utf-8") as log:
            with self.lock:
                if self.stopped:
                    return None
                print(f"training {run.name}; what it says is in {self._log(run)}", flush=True)
                # in a session of its own, or Ctrl-C would reach it twice: from the terminal and from here
                options = {"env": self.environment(place), "stdout": log, "stderr": subprocess.STDOUT}
                process = subprocess.Popen(command, start_new_session=True, **options)
                self.running.add(process)
            try:
                code = process.wait()
                while _group_lives(process):  # the launcher ends at once, the training saves first
                    time.sleep(0.1)
                return code
            finally:
                self.running.discard(process)

    def environment(self, place: str | None) -> dict[str, str]:
        """Of a run on this GPU, or on its share of the cores."""
        environment = {"WANDB_RUN_GROUP": self.output_dir.resolve().name, **os.environ}
        environment.pop("WANDB_RUN_ID", None)  # it would make one run of all
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        elif self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
            environment.setdefault("OMP_THREAD_LIMIT", environment["OMP_NUM_THREADS"])  # or one would not be kept to
        return environment

    def stop(self):
        """Let those that run save their state and end; begin no more. A second call ends them at once, as Ctrl-C does."""
        with self.lock:
            self.stopped = True
            for process in list(self.running):
                if hasattr(os, "killpg"):
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, signal.SIGINT)
                else:
                    process.terminate()

    def _log(self, run) -> Path:
        return self.output_dir / "logs" / f"{run.name}.txt"


def identity(options: dict) -> dict:
    """What makes two runs the same, wherever their folders lie."""
    return {key: value for key, value in options.items() if key not in ("output_dir", "run_name", "name")}


def _gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name: those that it names already, or the numbers of all."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def _group_lives(process) -> bool:
    if not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(process.pid, 0)
    except ProcessLookupError:
        return False
    return True


def _last_line(log: Path) -> str:
    """The trainer's own line on what is wrong, or the last that was said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [""])[-1][:300]


def run_all(runs: list[Run], output_dir: Path, jobs: int, overwrite: bool = False) -> dict[str, str]:
    """Make those runs that are not done, so many at a time; of those that have failed, why."""
    runner, failed = Runner(output_dir, jobs), {}
    waiting = [run for run in runs if not runner.is_done(run)]
    if len(waiting) < len(runs):
        print(f"{len(runs) - len(waiting)} of them are done already")
    began, pool = time.monotonic(), concurrent.futures.ThreadPoolExecutor(jobs)
    with _stopped_like_ctrl_c():
        try:
            futures = {pool.submit(runner.make, run, overwrite): run for run in waiting}
            for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
                run, problem = futures[future], future.result()
                if problem:
                    failed[run.name] = problem
                left = (time.monotonic() - began) / number * (len(waiting) - number) / 60
                told = f" (about {left:.0f} min for the other runs)" if number < len(waiting) else ""
                what = f"FAILED, {problem.removeprefix('error: ')}" if problem else "done"
                print(f"[{number}/{len(waiting)}] {run.name}: {what}{told}", flush=True)
        except KeyboardInterrupt:
            print("\nstopping; the runs save their state (once more ends them at once)", file=sys.stderr, flush=True)
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
def _stopped_like_ctrl_c():
    """Within it the end of the terminal, or of the machine, is what Ctrl-C is, so that no run is left behind."""
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
