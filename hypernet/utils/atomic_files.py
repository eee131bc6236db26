"""Write files and folders so that a crash leaves either the old one or the new one, whole."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

os.umask(UMASK := os.umask(0))  # there is no way to read it but to set it


@contextlib.contextmanager
def atomic_write(path):
    """Yield a temporary path beside `path`; what is written there replaces `path` once it is complete and on disk."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    try:
        yield temporary
        for file in [temporary, *temporary.rglob("*")]:
            if file.is_file():
                os.chmod(file, 0o666 & ~UMASK)  # safetensors lets nobody else read its files
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.is_dir():
            shutil.rmtree(path)  # a folder cannot be renamed over another one
        os.replace(temporary, path)
    finally:
        remove(temporary)


def is_unfinished(path) -> bool:
    """Whether this is what a killed run has left half-written."""
    return path.name.startswith(".") and path.name.endswith(".tmp")


def remove_unfinished(folder):
    """Delete what a killed run has left half-written in this folder."""
    for path in Path(folder).iterdir():
        if is_unfinished(path):
            remove(path)


def check_writable(folder):
    """Make the folder if need be. Raises: OSError if no file can be written in it."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def remove(path):
    """Delete a file or a folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
