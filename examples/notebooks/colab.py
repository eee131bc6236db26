"""What the cells of colab.ipynb call: run a script, watch a training with its pictures, stop it cleanly.

    from examples.notebooks import colab
    colab.run("examples/prepare.py", "raw_pictures", "my_pictures")
    colab.train({"config": "examples/configs/quickstart.yaml", "output_dir": "output/style"})
    colab.show("output/style/previews/before_after.png")

The scripts run in processes of their own: what they have said and drawn is shown below the cell while they run.
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
from pathlib import Path

import psutil
from IPython.display import display
from PIL import Image

REPO = Path(__file__).resolve().parents[2]
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "--num_processes=1", "--num_machines=1"]
LAUNCH += ["--mixed_precision=no", "--dynamo_backend=no"]  # said here, so that Accelerate has nothing to remark on
SECONDS, LINES = 2, 30  # between two looks; shown at most
WIDTH, LARGE = 1100, 2**20  # of a picture below a cell, and from so many pixels on it is a JPEG
BAR = re.compile(r"\d+/\d+ \[\d\d:\d\d<|\d+it \[\d\d:\d\d")  # a progress bar


class Notice(Exception):
    """Ends a cell with one line and no traceback."""

    def _render_traceback_(self):  # IPython asks for it
        return [str(self)]


def flags(options: dict) -> list[str]:
    """{"resolution": 512, "validation_prompt": ["a cat", "a house"]} as flags; what is empty is left out."""
    given = []
    for name, value in options.items():
        if isinstance(value, list) and value:
            given += [f"--{name}", *map(str, value)]
        elif value not in (None, "", []):
            given.append(f"--{name}={value}")
    return given


def run(script, *arguments) -> list[str]:
    """Run a script of the repository to its end; the lines that it has printed.

    Raises:
        Notice: if it fails, with its one line, or when it has been stopped.
    """
    return _follow([sys.executable, REPO / script, *arguments])


def train(options: dict) -> list[str]:
    """Train, or go on training, with these options, and show loss and newest previews meanwhile; else as `run`.

    A run of the very same options that is still at work, because only the notebook was restarted, is watched again.
    """
    output, loss, previews = Path(options["output_dir"]), _Place(), _Place()

    def show_pictures():
        loss.put_newest(output.glob("loss.png"))
        previews.put_newest(output.glob("previews/*.png"))

    return _follow([*LAUNCH, REPO / "train_hypernetwork.py", *flags(options)], show_pictures)


def show(path):
    """Show a picture below the cell."""
    _Place().put(_picture(Path(path), Path(path).stat().st_mtime_ns))


class _Place:
    """A place below the cell that is drawn over when there is something new."""

    def __init__(self):
        self.handle, self.shown = None, None

    def put(self, bundle: dict):
        if bundle == self.shown:
            return
        if self.handle is None:
            self.handle = display(bundle, raw=True, display_id=True)
        else:
            self.handle.update(bundle, raw=True)
        self.shown = bundle

    def put_newest(self, paths):
        """Put the newest of these pictures; a Drive that is away for a moment must not end the watch."""
        with contextlib.suppress(OSError):
            newest = max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
            if newest is not None:
                self.put(_picture(newest, newest.stat().st_mtime_ns))


@functools.lru_cache(maxsize=4)
def _picture(path: Path, mtime: int) -> dict:
    """What Jupyter takes for a picture; not larger than need be, for it is stored in the notebook."""
    image, file = Image.open(path).convert("RGB"), io.BytesIO()
    image.thumbnail((WIDTH, image.height))
    form = "png" if image.width * image.height <= LARGE else "jpeg"
    image.save(file, form, quality=92)
    return {f"image/{form}": base64.b64encode(file.getvalue()).decode(), "text/plain": path.name}


def _follow(command, show_more=lambda: None) -> list[str]:
    """Start a command and show its last lines until it ends; all of them in the end."""
    command = list(map(str, command))
    process, log, text, code = _find(command) or _start(command), _log(command), _Place(), ...
    with _interrupt_button(process) as presses:
        while code is ...:
            with contextlib.suppress(psutil.TimeoutExpired):
                code = process.wait(SECONDS)  # None of a process that an earlier notebook started
            lines = _console(log.read_text(encoding="utf-8", errors="replace"))
            text.put({"text/plain": "\n".join(lines[-LINES:]) or "starting ..."})
            show_more()
    stops = [line for line in lines if line.startswith("stopped")]
    errors = [line for line in lines if line.startswith("error: ")]
    if presses and (stops or code):
        line = (stops or ["stopped; to go on, run the same command again"])[-1]
        raise Notice(line.replace("the same command", "this cell"))
    if code or (code is None and errors):
        raise Notice((errors or lines or [f"it ended with exit code {code}, and said nothing"])[-1])
    return lines


def _log(command) -> Path:
    """What the command says; not on the Drive, which may be away for a while."""
    return Path(tempfile.gettempdir(), f"hypernetwork-{zlib.crc32(repr(command).encode()):08x}.log")


def _start(command) -> psutil.Popen:
    """In a session of its own, which the interrupt button's signal does not reach: it is handed on once, below."""
    changes = {"PYTHONUNBUFFERED": "1", "TQDM_MININTERVAL": "1", "MPLBACKEND": "Agg"}  # the notebook's fits no other
    with open(_log(command), "wb") as file:
        return psutil.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **changes}
        )


def _find(command) -> psutil.Process | None:
    """The process that runs this command already, if there is one."""
    return next((found for found in psutil.process_iter(["cmdline"]) if found.info["cmdline"] == command), None)


@contextlib.contextmanager
def _interrupt_button(process):
    """Within it the first interrupt reaches the script, so that it saves and ends; further ones change nothing."""
    presses = []

    def press(number, frame):
        presses.append(number)
        if len(presses) == 1:
            for one in _script_processes(process):
                one.send_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield presses
    finally:
        signal.signal(signal.SIGINT, before)


def _script_processes(process) -> list[psutil.Process]:
    """The script itself: below `accelerate launch`, which would die of the signal with a traceback, or this process."""
    with contextlib.suppress(psutil.Error):
        if "accelerate.commands.launch" in process.cmdline():
            return [one for one in process.children() if "train_hypernetwork" in " ".join(one.cmdline())] or [process]
    return [process]


def _console(text: str) -> list[str]:
    """The lines as a terminal shows them, of progress bars only the one that is at work."""
    *lines, last = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line and not BAR.search(line)] + ([last] if last else [])
