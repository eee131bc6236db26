"""Name the files of a cache that several runs write to at once, and remove what killed runs leave behind."""

import contextlib
import functools
import hashlib
import itertools
import platform
import signal
import threading
import time
import types
import typing
import uuid
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

PROBE = ".seen-"  # start of the names of files by which the processes of a run see whether they share a folder
UNTOUCHED = 24 * 3600  # seconds without a write after which another machine's temporary file counts as abandoned


@contextlib.contextmanager
def new_part_files(folder: Path) -> Iterator[Iterator[Path]]:
    """Yield an endless iterator of new paths in a folder, `MACHINE-RUN-NUMBER.arrow`, to write with `atomic_write`.

    Within the context, a lock marks the temporary files of these paths as in use, and SIGTERM and SIGHUP raise
    SystemExit, so that nothing is left behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = f"{_machine()}-{uuid.uuid4().hex}"
    lock = FileLock(_lock_path(folder, run))
    try:
        with contextlib.suppress(NotImplementedError, OSError):  # a file system without locks
            lock.acquire()
        with exit_on_signals():
            yield (folder / f"{run}-{number}.arrow" for number in itertools.count())
    finally:
        lock.release()
        _lock_path(folder, run).unlink(missing_ok=True)


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Raise SystemExit on SIGTERM and SIGHUP if they would otherwise end the process at once."""

    def stop(number: int, frame: types.FrameType | None) -> typing.NoReturn:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    is_main = threading.current_thread() is threading.main_thread()
    handled = [number for number in numbers if is_main and signal.getsignal(number) == signal.SIG_DFL]
    for number in handled:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in handled:
            signal.signal(number, signal.SIG_DFL)


def remove_abandoned(cache: Path) -> None:
    """Delete the temporary files that killed runs have left in the folders of a cache.

    A file is in use while its run holds a lock. Since not every file system shows locks to other machines, a file from
    another machine must also be untouched for a day; a run writes each of its files within minutes.
    """
    for path in cache.glob(f"{PROBE}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > UNTOUCHED:
                path.unlink()
    for path in [*cache.glob("*/.*.arrow.tmp"), *cache.glob("*/.*.lock")]:
        machine, _, rest = path.name[1:].removesuffix(".lock").partition("-")
        lock = _lock_path(path.parent, f"{machine}-{rest.partition('-')[0]}")
        with contextlib.suppress(OSError):  # another run may be deleting it
            is_old = time.time() - path.stat().st_mtime > UNTOUCHED
            is_ours = machine == _machine() and path != lock  # a lock file alone may not be locked yet
            if (is_old or is_ours) and not _is_held(lock, assumed=not is_old):
                path.unlink()
                lock.unlink(missing_ok=True)


def _is_held(lock: Path, assumed: bool) -> bool:
    """Return whether another process holds the lock, or `assumed` on a file system without locks."""
    if not lock.exists():
        return False
    try:
        with FileLock(lock, timeout=0):
            return False
    except Timeout:
        return True
    except (NotImplementedError, OSError):
        return assumed


def _lock_path(folder: Path, run: str) -> Path:
    return folder / f".{run}.lock"


@functools.cache
def _machine() -> str:
    """Return a short id of this machine."""
    return hashlib.sha256(f"{platform.node()} {uuid.getnode()}".encode()).hexdigest()[:8]
