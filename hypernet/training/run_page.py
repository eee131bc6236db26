"""Write run.html, the page that shows a run while it trains: one file that opens without a network or a server.

The page is made from the run's tables and previews, so a resumed run continues it. All text from a run (names,
captions, prompts) goes in as data, never as HTML.
"""

import collections
import contextlib
import json
import math
import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from hypernet.training.failures import Failures
from hypernet.training.run_curves import draw_panels
from hypernet.training.run_folder import RunFolder
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import reason
from hypernet.utils.image_grid import CELLS

TEMPLATE = Path(__file__).with_name("run_page.html")
GRID = re.compile(r"step-(\d+)(-discarded)?\.png")
PLACE = "RUN_DATA"  # in the template
SHARE = 0.01  # of the run's time may go into writing the page; a page that takes longer is written less often
PACES = 30  # writes over which the pace is measured, to estimate the time left
MAX_EVENTS = MAX_LINES = 50

Cell = list[int]  # left, top, width, height


class RunPage:
    """The page of a run, written by the main process only. As a context manager, it shows how a run failed.

    Args:
        facts: what stays the same during a run; see `describe_run`.
        first_step: the number of steps already taken.
        last_step: where the run ends.

    Attributes:
        step: the number of steps taken.
    """

    def __init__(
        self, folder: RunFolder, failures: Failures, facts: Mapping[str, Any], first_step: int, last_step: int
    ) -> None:
        self.folder, self.failures, self.facts = folder, failures, facts
        self.step, self.last_step = first_step, max(first_step, last_step)
        self._started = time.monotonic()
        self._paces = collections.deque([(self._started, first_step)], maxlen=PACES)
        self._next_write = 0.0
        self._grids: dict[tuple[str, int], dict[str, Any]] = {}  # preview grids already described

    def __enter__(self) -> "RunPage":
        self.write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.write("stopped")
        elif error is not None:
            self.write("failed", reason(error))

    def write(self, state: str = "training", message: str = "") -> None:
        """Write the page, unless the last write was so recent that writing again would exceed its share of the time.

        Args:
            state: "training", or how the run ended: "finished", "stopped" or "failed".
            message: why it failed or ended early.
        """
        started = time.monotonic()
        if not self.failures.accelerator.is_main_process or (state == "training" and started < self._next_write):
            return
        with self.failures.tolerate(f"{self.folder.page} could not be written"):
            content = render(self.collect(state, message))
            with atomic_write(self.folder.page) as temporary:
                temporary.write_text(content, encoding="utf-8")
        self._next_write = time.monotonic() + (time.monotonic() - started) / SHARE

    def collect(self, state: str, message: str = "") -> dict[str, Any]:
        """Return everything on the page as plain data, none of it NaN or infinite."""
        folder, now = self.folder, time.monotonic()
        tables = (folder.losses, folder.validation_losses, folder.metrics, folder.scores, folder.guard_log)
        losses, validation_losses, metrics, scores, events = (table.rows() for table in tables)
        step = max([self.step, *(int(rows[-1]["step"]) for rows in (losses, validation_losses) if rows)])
        began, first = self._paces[0]
        self._paces.append((now, step))
        pace = (now - began) / (step - first) if step > first else None  # seconds per step
        return {
            **self.facts,
            "state": state,
            "message": message,
            "written": time.time(),
            "step": step,
            "last_step": max(step, self.last_step),
            "elapsed": now - self._started,
            "left": pace and pace * max(0, self.last_step - step),
            "panels": draw_panels(losses, validation_losses, metrics, scores),
            "speed": _last(metrics, "images_per_second"),
            "memory": _last(metrics, "peak_memory_gib"),
            "events": [[int(row["step"]), row.get("event", "")] for row in events[-MAX_EVENTS:]],
            "previews": self._list_previews(step, has_ended=state == "finished"),
            "warnings": self.failures.lines[-MAX_LINES:],
        }

    def _list_previews(self, step: int, has_ended: bool) -> list[dict[str, Any]]:
        """Return the run's preview grids up to a step, oldest first, and the final one if the run has ended."""
        names = {path: GRID.fullmatch(path.name) for path in self.folder.previews.glob("step-*.png")}
        steps = sorted((int(name[1]), not name[2], path) for path, name in names.items() if name)
        found = [
            (number, f"step {number:,}" + ("" if is_kept else ", discarded by the guard"), path)
            for number, is_kept, path in steps
            if number <= step
        ]
        if has_ended and self.folder.before_after.is_file():
            found.append((step, f"step {step:,}, the result", self.folder.before_after))
        previews = []
        for number, label, path in found:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # a file that another program changed
                key = (path.name, path.stat().st_mtime_ns)
                grid = self._grids[key] = self._grids.get(key) or describe_grid(path)
                previews.append({"step": number, "label": label, "source": f"previews/{path.name}?{key[1]}", **grid})
        return previews


def describe_grid(path: Path) -> dict[str, Any]:
    """Return the width and height of a preview grid, and its "tiles": the prompt and both cells of each pair in it.

    Grids written by older versions have no tiles. A cell that the grid lacks is None.
    """
    with Image.open(path) as image:
        size, text = image.size, image.info.get(CELLS)
    found: dict[str, Any] = {"width": size[0], "height": size[1], "tiles": []}
    if text is None:
        return found
    layout = json.loads(text)
    bare = [name == "without" for name in layout["columns"]]
    for prompt, cells in zip(layout["rows"], layout["cells"]):
        before: list[Cell] = [cell for cell, is_bare in zip(cells, bare) if is_bare]
        after: list[Cell] = [cell for cell, is_bare in zip(cells, bare) if not is_bare]
        for number in range(max(len(before), len(after))):
            pair = {"without": before[number : number + 1], "with": after[number : number + 1]}
            found["tiles"].append(
                {"prompt": prompt, **{name: cell[0] if cell else None for name, cell in pair.items()}}
            )
    return found


def render(run: Mapping[str, Any]) -> str:
    """Return the page of a run. No text in its data can end the HTML element that holds it."""
    data = json.dumps(run, allow_nan=False, separators=(",", ":"))  # ASCII only
    for letter in "<>&":
        data = data.replace(letter, f"\\u{ord(letter):04x}")
    return TEMPLATE.read_text(encoding="utf-8").replace(PLACE, data, 1)


def _last(rows: list[dict[str, Any]], column: str) -> float | None:
    """Return the last value of a column if it is finite, else None."""
    value = float(rows[-1].get(column) or math.nan) if rows else math.nan
    return value if math.isfinite(value) else None
