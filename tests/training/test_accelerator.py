"""Numbers of threads chosen by the user, and processes that share a work over gloo."""

import os
import socket
import subprocess
import sys

import pytest

from hypernet.training.accelerator import threads_are_chosen
from tests.helpers.forked_python import forked_python
from tests.helpers.scripts import REPO


@pytest.mark.parametrize(
    "words, environment, chosen",
    [
        (["accelerate", "launch"], {}, False),
        (["accelerate", "launch"], {"OMP_NUM_THREADS": "1"}, True),
        (["accelerate", "launch", "--num_cpu_threads_per_process=1"], {}, True),
        (["-m", "torch.distributed.run"], {"OMP_NUM_THREADS": "1"}, True),
        (["bash"], {"OMP_NUM_THREADS": "1"}, False),  # not a launcher, so nothing has changed it
    ],
)
def test_threads_are_chosen_in_the_environment_of_the_launcher(monkeypatch, words, environment, chosen):
    command = [sys.executable, "-c", "print(flush=True); input()", *words]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as launcher:
        launcher.stdout.readline()
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        assert threads_are_chosen() is chosen
        launcher.communicate(b"\n")


SHARING = """
import datetime, os, sys, time
from pathlib import Path
from accelerate import Accelerator
from hypernet.cli.script import run_script
from hypernet.data.arrow_cache import FLOATS, RowCache
from hypernet.training import accelerator as module

module.TIMEOUT, dying = datetime.timedelta(seconds=2), sys.argv[2]

def compute(items):
    for number, (key, _) in enumerate(items):
        if dying == os.environ["RANK"] and number == 7:
            os._exit(9)  # as if killed
        time.sleep(0.2 if os.environ["RANK"] == "0" else 0.05)
        yield {"key": key, "numbers": [1.0]}
    print(f"computed {len(items)}", flush=True)

@module.report_dead_processes()
def main():
    processes = module.connect_processes(Accelerator(cpu=True))
    cache = RowCache(Path(sys.argv[1]) / "rows", {"numbers": FLOATS}, processes)
    cache.fill({f"key {number}": None for number in range(40)}, compute, "Computing", "rows")
    assert (cache.positions([f"key {number}" for number in range(40)]) >= 0).all()

run_script(main)
"""


def share_out(folder, dying=""):
    """Let two processes fill a cache; return their exit codes and what they printed. The process `dying` dies."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        command = [sys.executable, "-c", SHARING, str(folder), dying]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with forked_python():
            processes.append(subprocess.Popen(command, env=environment, cwd=REPO, **pipes))
    outputs = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], outputs


def test_a_share_may_take_longer_than_a_communication(tmp_path):
    codes, outputs = share_out(tmp_path)  # the first process computes for 4 s
    assert codes == [0, 0] and [stdout for stdout, _ in outputs] == ["computed 20\n"] * 2, outputs


@pytest.mark.parametrize("dying", [0, 1])
def test_a_process_that_dies_while_it_computes_ends_the_others_in_one_line(tmp_path, dying):
    codes, outputs = share_out(tmp_path, str(dying))
    assert codes[dying] == 9 and codes[1 - dying] == 2, outputs
    errors = [line for line in outputs[1 - dying][1].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in outputs[1 - dying][1], outputs
    codes, outputs = share_out(tmp_path)
    assert codes == [0, 0]
    rest = [int(stdout.split()[1]) for stdout, _ in outputs]
    assert abs(rest[0] - rest[1]) <= 1 and 20 <= sum(rest) < 40  # what the other one has computed is kept
