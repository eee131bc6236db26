"""Numbers of threads chosen by the user, and processes that wait for one another."""

import os
import socket
import subprocess
import sys

import pytest

from hypernet.training.accelerator import threads_are_chosen
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


WAITING = """
import datetime, os, sys, time
from accelerate import Accelerator
from hypernet.cli.script import run_script
from hypernet.training import accelerator as module

module.TIMEOUT, path = datetime.timedelta(seconds=2), sys.argv[1]

@module.report_dead_processes()
def main():
    accelerator = Accelerator(cpu=True)
    with module.local_main_process_first(accelerator):
        if accelerator.is_main_process:
            time.sleep(4)  # longer than any communication may take
            open(path, "w").close()
        else:
            assert os.path.exists(path)
    print("waited", flush=True)
    with module.local_main_process_first(accelerator):
        if accelerator.is_main_process:
            os._exit(9)  # as if killed
        raise AssertionError

run_script(main)
"""


def test_processes_wait_for_the_first_as_long_as_it_lives(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", WAITING, str(tmp_path / "file")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, **pipes))
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [9, 2], outputs
    assert all(stdout == "waited\n" for stdout, _ in outputs), outputs
    errors = [line for line in outputs[1][1].splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in outputs[1][1]
