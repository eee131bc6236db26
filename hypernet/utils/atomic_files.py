"""Write files and folders so that a crash leaves either the complete old one or the complete new one."""

import contextlib
import functools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

_UMASK_LOCK = threading.Lock()


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; flush what is written there to disk, then move it to `path`.

    It may be a file or a folder. If the block raises, `path` stays as it was.

    Raises:
        OSError: it names `path`, not the temporary path.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        remove(temporary)
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                os.chmod(file, 0o666 & ~_umask())  # safetensors makes its files unreadable for other users
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.is_dir():
            shutil.rmtree(path)  # a folder cannot be renamed over another one
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(temporary):
            error.filename = str(path / Path(error.filename).relative_to(temporary))
            error.filename2 = None
        raise
    finally:
        with contextlib.suppress(OSError):  # `remove_unfinished` tries again; the error above says more
            remove(temporary)


@functools.cache
def _umask() -> int:
    """Return the process's umask. The only way to read it is to set it."""
    with _UMASK_LOCK:  # otherwise a second thread could read the temporary one
        os.umask(umask := os.umask(0o077))
    return umask


def free_space(path: Path) -> int:
    """Return how many bytes are free on the disk of a path, which need not exist yet."""
    return shutil.disk_usage(next(each for each in (path, *path.resolve().parents) if each.exists())).free


def is_unfinished(path: Path) -> bool:
    """Return whether this is a temporary path of `atomic_write`, left behind by a killed run."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_unfinished(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files and folders that a killed run has left in this folder, as far as possible."""
    for path in Path(folder).iterdir():
        if is_unfinished(path):
            with contextlib.suppress(OSError):
                remove(path)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Create the folder if it does not exist.

    Raises:
        OSError: if no file can be written in it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def remove(path: Path) -> None:
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link_folder(source: Path, target: Path) -> None:
    """Replace `target` by hard links to the files of `source`; by copies where the file system has no hard links."""

    def link(file: str, to: str) -> None:
        try:
            os.link(file, to)
        except OSError:
            shutil.copy2(file, to)

    remove(target)
    shutil.copytree(source, target, copy_function=link)
