"""Make runs of the training one after the other, or several at a time, each a process of its own."""

import concurrent.futures
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

from hypernet.drawing_options import training_options
from hypernet.errors import UserError
from hypernet.replacing import replacing

SCRIPT = Path(__file__).resolve().parent.parent / "train_hypernetwork.py"


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
        gpus = torch.cuda.device_count()
        for job in range(jobs):
            self.places.put(str(job % gpus) if gpus else None)
        self.running, self.stopped, self.lock = set(), False, threading.Lock()
        self._done_file = output_dir / "done.json"
        self.done = json.loads(self._done_file.read_text()) if self._done_file.is_file() else {}
        for folder in ("configs", "logs", "runs"):
            (output_dir / folder).mkdir(parents=True, exist_ok=True)

    def is_done(self, run: Run) -> bool:
        return self.done.get(run.name) == run.options and (run.folder / "result.json").is_file()

    def make(self, run: Run, overwrite: bool) -> str | None:
        """Train; why that failed, or None."""
        place = self.places.get()
        try:
            if self.stopped:
                return "not begun"
            # other options than before: the trainer refuses the folder, and says why
            renew = overwrite and self.done.get(run.name) not in (None, run.options)
            code = self._train(run, place, ["--overwrite"] if renew else [])
        finally:
            self.places.put(place)
        if code:
            return _last_line(self._log(run)) or f"exit code {code}"
        with self.lock, replacing(self._done_file) as temporary:
            self.done[run.name] = run.options
            temporary.write_text(json.dumps(self.done, indent=1), encoding="utf-8")
        return None if (run.folder / "result.json").is_file() else "stopped before its end"

    def _train(self, run, place, flags) -> int:
        config = self.output_dir / "configs" / f"{run.name}.yaml"
        with replacing(config) as temporary:
            temporary.write_text(yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True), encoding="utf-8")
        environment = {"WANDB_RUN_GROUP": self.output_dir.resolve().name, **os.environ}
        if place is not None:
            environment["CUDA_VISIBLE_DEVICES"] = place
        elif self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes", "1"]
        command += [str(SCRIPT), "--config", str(config), *flags]
        with open(self._log(run), "w", encoding="utf-8") as log:
            # in a session of its own, or Ctrl-C would reach it twice: from the terminal and from here
            process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            self.running.add(process)
            try:
                return process.wait()
            finally:
                self.running.discard(process)

    def stop(self):
        """Let those that run save their state and end; begin no more."""
        self.stopped = True
        for process in list(self.running):
            os.killpg(process.pid, signal.SIGINT)

    def _log(self, run) -> Path:
        return self.output_dir / "logs" / f"{run.name}.txt"


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
    began, before = time.monotonic(), signal.signal(signal.SIGTERM, signal.default_int_handler)
    pool = concurrent.futures.ThreadPoolExecutor(jobs)
    try:
        futures = {pool.submit(runner.make, run, overwrite): run for run in waiting}
        for number, future in enumerate(concurrent.futures.as_completed(futures), 1):
            run, problem = futures[future], future.result()
            if problem:
                failed[run.name] = problem
            left = (time.monotonic() - began) / number * (len(waiting) - number) / 60
            what = f"FAILED: {problem}" if problem else "done"
            print(f"[{number}/{len(waiting)}] {run.name}: {what}; about {left:.0f} min left", flush=True)
    except KeyboardInterrupt:
        print("\nstopping; the runs save their state", file=sys.stderr)
        runner.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        signal.signal(signal.SIGTERM, before)
    if len(failed) == len(runs):
        raise UserError(
            f"all runs have failed, the first one so: {next(iter(failed.values())).removeprefix('error: ')}"
        )
    return failed
