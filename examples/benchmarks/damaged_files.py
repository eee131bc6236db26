#!/usr/bin/env python
"""Make damaged and hostile files of every kind that scripts read, and open each as the scripts do.

    python examples/benchmarks/damaged_files.py                                 # 1,000 files; about half an hour
    python examples/benchmarks/damaged_files.py --kinds ckpt yaml --count 50 --seed 3

Prints a row per kind: how many files were opened (some damage has no effect) or refused in one line, and how many ended
in a traceback, ran code, took over 10 s of CPU time or over 1 GB, or put control characters or endless lines on the
console. The last five should be 0. A file depends only on the seed, its kind and its number; --keep FOLDER keeps those
that did harm.
"""

import argparse
import contextlib
import dataclasses
import io
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()

from examples.benchmarks.damage.kinds import KINDS
from examples.benchmarks.damage.samples import make_samples
from hypernet.cli.console import CONTROLS
from hypernet.cli.generation_options import parse_count
from hypernet.utils.errors import MAX_MESSAGE, UserError

SECONDS, BYTES = 10, 2**30  # that a file may take
GRACE = 120  # seconds after which a worker that does not answer is killed; generous, for busy machines
HARMLESS = ("opened", "refused")
HARM = ("traceback", "ran code", "over 10 s", "over 1 GB", "bad output")
MAX_LINE = 2000  # characters of a line on the console


@dataclasses.dataclass
class Outcome:
    """The outcome of opening a file."""

    results: list[str]  # one of HARMLESS, or any of HARM
    seconds: float
    bytes: int  # the largest growth of the process
    detail: str  # the message or traceback


def open_case(kind: str, folder: Path, marker: Path) -> Outcome:
    """Open the files of a case in every way of its kind, and return the worst outcome."""
    results, details = [], []
    before, started = _reset_peak(), time.process_time()
    for step in KINDS[kind].open(folder):
        log = folder.with_name("log")
        try:
            with _console(log):
                run_script(step)
            results.append("opened")
        except SystemExit:
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("error: ")]
            is_short = len(lines) == 1 and len(lines[0]) <= MAX_MESSAGE + 20
            results.append("refused" if is_short else "traceback")
        except BaseException:
            results.append("traceback")
            details.append(traceback.format_exc()[-3000:])
        output = log.read_text(encoding="utf-8")
        if CONTROLS.search(output) or max(map(len, re.split(r"[\r\n]", output))) > MAX_LINE:
            results.append("bad output")
        details.append(output[-1000:])
    seconds, grown = time.process_time() - started, _peak() - before
    results += ["ran code"] * marker.exists() + ["over 10 s"] * (seconds > SECONDS) + ["over 1 GB"] * (grown > BYTES)
    marker.unlink(missing_ok=True)
    harm = [result for result in HARM if result in results]
    harmless = ["refused" if "refused" in results else "opened"]
    return Outcome(harm or harmless, seconds, grown, "\n".join(details))


@contextlib.contextmanager
def _console(log: Path) -> Iterator[None]:
    """Redirect the console to a file, including libraries that write to the process's own stderr."""
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    with open(log, "w", encoding="utf-8") as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
        try:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                yield
                sys.stdout.flush()
                sys.stderr.flush()
        finally:
            for descriptor, copy in zip((1, 2), kept):
                os.dup2(copy, descriptor)
                os.close(copy)


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _reset_peak() -> int:
    """Reset the peak size of the process, and return its current size."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def work(connection: Connection, samples: Path, folder: Path, seed: int) -> None:
    """Make and open the cases that the connection names, and answer with their outcomes."""
    import resource

    quiet_libraries()
    marker = folder / "code ran"
    resource.setrlimit(resource.RLIMIT_DATA, (8 * BYTES, 8 * BYTES))  # so that a bomb kills only its process
    while (case := connection.recv()) is not None:
        kind, number = case
        place = folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        os.chdir(place)
        KINDS[kind].make(random.Random(f"{seed}/{kind}/{number}"), samples, place, marker)
        connection.send(open_case(kind, place, marker))


class Worker:
    """A process that opens one case after the other; it is replaced when it hangs or dies."""

    def __init__(self, samples: Path, folder: Path, seed: int):
        self.arguments, self.folder = (samples, folder, seed), folder
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other, *self.arguments), daemon=True)
        self.process.start()
        other.close()
        self.is_fresh = True

    def open(self, kind: str, number: int) -> Outcome:
        """Return the outcome of the case."""
        self.connection.send((kind, number))
        try:
            if self.connection.poll(GRACE + 90 * self.is_fresh):  # a fresh process imports first
                self.is_fresh = False
                return self.connection.recv()
            outcome = Outcome(["over 10 s"], GRACE, 0, "it did not answer")
        except EOFError:
            outcome = Outcome(["traceback"], 0, 0, f"the process ended with {self.process.exitcode}")
        self.process.kill()
        self.process.join()
        self.start()
        return outcome

    def stop(self) -> None:
        """End the process."""
        self.connection.send(None)
        self.process.join(5)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the options.

    Raises:
        UserError: for an unknown kind.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument("--count", type=parse_count, default=1000, help="files in all; default: %(default)s")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), help=f"of {', '.join(KINDS)}; default: all")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--keep", type=Path, help="folder for the files that did harm, and why")
    args = parser.parse_args(arguments)
    for kind in args.kinds:
        if kind not in KINDS:
            raise UserError(f"--kinds {kind}: there is no such kind; choose from {', '.join(KINDS)}")
    return args


def keep(folder: Path, case: str, outcome: Outcome, files: Path) -> None:
    """Copy the files of a case that did harm."""
    place = folder / case
    place.mkdir(parents=True, exist_ok=True)
    (place / "why.txt").write_text(f"{outcome.results} {outcome.seconds:.1f} s\n{outcome.detail}", errors="replace")
    for path in files.rglob("*"):
        if path.is_file() and path.stat().st_size < 10**7 and path.stat().st_nlink == 1:
            target = place / path.relative_to(files)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)


def main(arguments: Sequence[str] | None = None) -> dict[str, Counter[str]]:
    args = parse_arguments(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    counts = {kind: Counter[str]() for kind in args.kinds}
    with tempfile.TemporaryDirectory() as work_folder:
        samples = Path(work_folder, "samples")
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            make_samples(samples, args.kinds)
        worker = Worker(samples, Path(work_folder, "work"), args.seed)
        print(f"{'kind':10}{'files':>8}" + "".join(f"{name:>20}" for name in (*HARMLESS, *HARM)) + f"{'longest':>10}")
        for index, kind in enumerate(args.kinds):
            files = args.count // len(args.kinds) + (index < args.count % len(args.kinds))
            longest = 0.0
            for number in range(files):
                outcome = worker.open(kind, number)
                counts[kind].update(outcome.results)
                longest = max(longest, outcome.seconds)
                if args.keep and not set(outcome.results) <= set(HARMLESS):
                    keep(args.keep, f"{kind}-{args.seed}-{number}", outcome, worker.folder / "case")
            cells = "".join(f"{counts[kind][name]:>20}" for name in (*HARMLESS, *HARM))
            print(f"{kind:10}{files:>8}{cells}{longest:>8.1f} s", flush=True)
        worker.stop()
    return counts


if __name__ == "__main__":
    run_script(main)
