"""Start Python processes without the seconds of their imports: as forks of a process that has imported it all.

    with forked_python():
        subprocess.run([sys.executable, "train_hypernetwork.py", ...])

A fork is a child of the process that starts it, with its own files, environment, session and signals. It runs the
script as the interpreter would, and the Python processes that it starts are forks, too. Unlike a fresh process, it
shows no warnings of imports, its command line is that of the server, and it ends without taking the interpreter apart.
A process starts afresh where a fork would differ more: with options of the interpreter, with other values of variables
that are read on import, and on other systems than Linux.
"""

import atexit
import contextlib
import ctypes
import gc
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parents[2]
READ_ON_IMPORT = ("HF_", "LD_", "OMP_", "PYTHON")
UNBUFFERED = "PYTHONUNBUFFERED"  # is honored
PR_SET_CHILD_SUBREAPER = 36  # of <linux/prctl.h>
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")

start_afresh = subprocess.Popen._execute_child


def read_on_import(environment: dict[str, str]) -> dict[str, str]:
    """Return the variables that libraries read when they are imported."""
    return {name: environment[name] for name in environment if name.startswith(READ_ON_IMPORT) and name != UNBUFFERED}


imported_with = read_on_import(dict(os.environ))


# --- In the process that starts others


@contextlib.contextmanager
def forked_python() -> Iterator[None]:
    """Make every start of this Python in the `with` block a fork, if it can be one."""
    with mock.patch.object(subprocess.Popen, "_execute_child", start_fork):
        yield


def start_fork(self: subprocess.Popen, *arguments: Any) -> None:
    """Take the place of `Popen._execute_child`."""
    given = inspect.signature(start_afresh).bind(self, *arguments).arguments
    environment = dict(os.environ if given["env"] is None else given["env"])
    words = [os.fsdecode(word) for word in given["args"]] if isinstance(given["args"], (list, tuple)) else []
    if not can_be_fork(words, environment, given):
        start_afresh(self, *arguments)
        return
    request = {"words": words[1:], "environment": environment, "parent": os.getpid()}
    request |= {"folder": os.fsdecode(given["cwd"] or os.getcwd()), "new_session": given["start_new_session"]}
    files = [given[name] for name in ("p2cread", "c2pwrite", "errwrite")]
    try:
        self.pid = server().fork(request, [number if file == -1 else file for number, file in enumerate(files)])
        self._child_created = True
    finally:
        self._close_pipe_fds(*(given[name] for name in PIPES))


def can_be_fork(words: list[str], environment: dict[str, str], given: dict[str, Any]) -> bool:
    """Whether a fork can replace the start of a process."""
    is_script = words[:1] == [sys.executable] and len(words) > 1
    is_plain = is_script and (words[1] in ("-c", "-m", "-u") or not words[1].startswith("-"))
    is_plain &= not (given["shell"] or given["preexec_fn"] or given["pass_fds"] or given["executable"])
    return sys.platform == "linux" and is_plain and read_on_import(environment) == imported_with


class Server:
    """The connection to a process that forks on request."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen | None = None):
        self.connection, self.process, self.lock = connection, process, threading.Lock()

    def fork(self, request: dict[str, Any], files: list[int]) -> int:
        """Return the id of a new child of this process, with these files as its stdin, stdout and stderr."""
        prctl = ctypes.CDLL(None).prctl
        with self.lock:
            prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)  # orphans below this process become its children
            try:
                socket.send_fds(self.connection, [json.dumps(request).encode()], files)
                return int(self.connection.recv(100))  # nothing if the server has failed
            finally:
                prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


servers: list[Server] = []  # of this process: one or none
starting = threading.Lock()


def server() -> Server:
    """Return the server of this process; the first call starts it."""
    with starting:
        if not servers:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            code = f"from tests.helpers.forked_python import main; main({theirs.fileno()})"
            others = {name: value for name, value in os.environ.items() if not name.startswith(READ_ON_IMPORT)}
            with theirs, mock.patch.object(subprocess.Popen, "_execute_child", start_afresh):
                process = subprocess.Popen(
                    [sys.executable, "-c", code],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno()],
                    cwd=REPO,
                    env=others | imported_with,
                )
            servers.append(Server(ours, process))
        return servers[0]


# --- In the server and its forks


def main(connection: int) -> None:
    """Import what the scripts import, and serve; in a fork, run what was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the process that it works for decides
    import diffusers
    import matplotlib.figure  # noqa: F401
    import transformers

    import train_hypernetwork  # noqa: F401

    assert diffusers.StableDiffusionPipeline and transformers.CLIPTextModel  # which imports them
    gc.collect()
    gc.freeze()  # a collection in a fork would copy their memory
    run(*serve(socket.socket(fileno=connection)))


def serve(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request; return in the forks alone, with the request and its files."""
    while True:
        message, files, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            os._exit(0)  # the process that it works for has ended
        reader, writer = os.pipe()
        if (between := os.fork()) == 0:
            if os.fork() == 0:
                break
            os._exit(0)  # makes the fork an orphan
        os.close(writer)
        os.waitpid(between, 0)
        connection.send(os.read(reader, 100))
        for file in (reader, *files):
            os.close(file)
    for file in (reader, connection.detach()):
        os.close(file)
    request = json.loads(message)
    while os.getppid() not in (request["parent"], 1):  # still that of the process between
        time.sleep(0.001)
    if request["new_session"]:
        os.setsid()
    os.write(writer, str(os.getpid()).encode())  # now: whoever starts a process may ask at once for its group
    os.close(writer)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:  # a server for the processes that the fork starts
        for file in (ours.detach(), *files):
            os.close(file)
        return serve(theirs)
    theirs.close()
    servers[:] = [Server(ours)]
    subprocess.Popen._execute_child = start_fork
    return request, files


def run(request: dict[str, Any], files: list[int]) -> None:
    """Run a script, a module (-m) or code (-c) in the place of the interpreter."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = request["words"]
    if words[0] == "-u" or UNBUFFERED in os.environ:
        sys.stdout.reconfigure(write_through=True)
    words = words[words[0] == "-u" :]
    code = 0
    try:
        if words[0] == "-c":
            sys.argv, sys.path[0] = ["-c", *words[2:]], ""
            exec(words[1], {"__name__": "__main__"})
        elif words[0] == "-m":
            sys.argv, sys.path[0] = words[1:], os.getcwd()
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # waits for threads
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)  # taking apart all that the server has imported takes half a second
