"""Run scripts from the cells of colab.ipynb, show their output and images, and stop them cleanly.

    import colab
    colab.run("examples/prepare.py", "raw_images", "my_images")
    colab.train({"config": "examples/configs/quickstart.yaml", "output_dir": "output/style"})
    colab.show("output/style/previews/before_after.png")

Each script runs in its own process; the cell shows its output and images while it runs.
"""

import base64
import contextlib
import functools
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from IPython.display import display
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
POLL_SECONDS, MAX_LINES = 2, 30
MAX_WIDTH, MAX_PNG_PIXELS = 1100, 2**20  # of an image below a cell; larger ones are shown as JPEG
PROGRESS_BAR = re.compile(r"\d+/\d+ \[\d\d:\d\d<|\d+it \[\d\d:\d\d")


class Notice(Exception):
    """Ends a cell with one line and no traceback."""

    def _render_traceback_(self) -> list[str]:  # called by IPython
        return [str(self)]


def flags(options: dict[str, Any]) -> list[str]:
    """Turn {"resolution": 512, "validation_prompt": ["a cat", "a house"]} into flags; empty values are left out."""
    given = []
    for name, value in options.items():
        if isinstance(value, list) and value:
            given += [f"--{name}", *map(str, value)]
        elif value not in (None, "", []):
            given.append(f"--{name}={value}")
    return given


def run(script: str | Path, *arguments: object) -> list[str]:
    """Run a script of the repository and return the lines it has printed.

    Raises:
        Notice: if it fails, with its error message, or if it was stopped.
    """
    return _run_and_show([sys.executable, REPO / script, *arguments])


def train(options: dict[str, Any]) -> list[str]:
    """Start or resume training; show the loss and the newest previews. Otherwise like `run`.

    If the same command is still running, because only the notebook was restarted, it is shown again.
    """
    output, loss, previews = Path(options["output_dir"]), _Display(), _Display()

    def show_images() -> None:
        loss.show_newest(output.glob("loss.png"))
        previews.show_newest(output.glob("previews/*.png"))

    return _run_and_show([sys.executable, REPO / "train_hypernetwork.py", *flags(options)], show_images)


def show(path: str | Path) -> None:
    """Show an image below the cell."""
    path = Path(path)
    _Display().show(_image_bundle(path, path.stat().st_mtime_ns))


class _Display:
    """One output below the cell, replaced when it changes."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.shown: dict[str, str] | None = None

    def show(self, bundle: dict[str, str]) -> None:
        if bundle == self.shown:
            return
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
        self.shown = bundle

    def show_newest(self, paths: Iterable[Path]) -> None:
        """Show the newest of these images; skip one that cannot be read yet (Drive may be briefly unavailable)."""
        with contextlib.suppress(OSError):
            newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
            if newest is not None:
                self.show(_image_bundle(newest, newest.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _image_bundle(path: Path, mtime: int) -> dict[str, str]:
    """Return an image by MIME type, scaled down because it is stored in the notebook."""
    image, file = Image.open(path).convert("RGB"), io.BytesIO()
    image.thumbnail((MAX_WIDTH, image.height))
    form = "png" if image.width * image.height <= MAX_PNG_PIXELS else "jpeg"
    image.save(file, form, quality=92)
    return {f"image/{form}": base64.b64encode(file.getvalue()).decode(), "text/plain": path.name}


def _run_and_show(words: Sequence[object], show_more: Callable[[], None] = lambda: None) -> list[str]:
    """Start a command, show its last lines until it ends, and return all of them."""
    command = list(map(str, words))
    process, log, text = _find_process(command) or _start(command), _log_file(command), _Display()
    lines: list[str] = []
    code, ended = None, False
    with _forward_interrupt(process) as interrupts:
        while not ended:
            with contextlib.suppress(psutil.TimeoutExpired):
                code, ended = process.wait(POLL_SECONDS), True  # None for a process of an earlier notebook
            lines = _visible_lines(log.read_text(encoding="utf-8", errors="replace"))
            text.show({"text/plain": "\n".join(lines[-MAX_LINES:]) or "starting ..."})
            show_more()
    stops = [line for line in lines if line.startswith("stopped")]
    errors = [line for line in lines if line.startswith("error: ")]
    if interrupts and (stops or code):
        line = (stops or ["stopped; to resume, run the same command again"])[-1]
        raise Notice(line.replace("the same command", "this cell"))
    if code or (code is None and errors):
        raise Notice((errors or lines or [f"it ended with exit code {code} and printed nothing"])[-1])
    return lines


def _log_file(command: list[str]) -> Path:
    """Return where a command's output goes: not to Drive, which may be briefly unavailable."""
    return Path(tempfile.gettempdir(), f"hypernetwork-{zlib.crc32(repr(command).encode()):08x}.log")


def _start(command: list[str]) -> psutil.Popen:
    """Start a command in its own session, so that the interrupt button reaches it only through `_forward_interrupt`."""
    changes = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1", "MPLBACKEND": "Agg"}  # Colab's needs IPython
    with open(_log_file(command), "wb") as file:
        return psutil.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **changes}
        )


def _find_process(command: list[str]) -> psutil.Process | None:
    """Return the process that is already running this command, if any."""
    return next((found for found in psutil.process_iter(["cmdline"]) if found.info["cmdline"] == command), None)


@contextlib.contextmanager
def _forward_interrupt(process: psutil.Process) -> Iterator[list[int]]:
    """Forward the first interrupt to the script, so that it saves and ends; ignore further ones.

    Yields:
        The interrupts received so far.
    """
    interrupts: list[int] = []

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        if len(interrupts) == 1:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _visible_lines(text: str) -> list[str]:
    """Return the lines a terminal would show, with no progress bar but one that is still running."""
    *lines, last = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line and not PROGRESS_BAR.search(line)] + ([last] if last else [])
