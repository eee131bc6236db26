"""The report of examples/benchmarks/gpu_check.py, as Markdown and as JSON."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from examples.benchmarks.gpu_parts.processes import REPO, Outcome, Part, Row, Settings
from hypernet.utils.atomic_files import atomic_write

TARGET, MET = "target", "met"  # columns that `judge` adds
FAILED = ("failed", "timed out")
LEGEND = """\
- floor: a training step of the frozen UNet alone
- ours: a step with a hypernetwork, linear or with an activation (swish), and with the option named
- webui: the same, computed as the AUTOMATIC1111 WebUI does; lora: with a LoRA of rank 16 instead
- x floor, x ours: the time, relative to that of the floor, and of ours
- GiB: the peak of allocated memory
- target, met: the limit that this project has set itself, and whether the figure keeps it"""


@dataclasses.dataclass
class Report:
    """All that the check has found so far.

    Attributes:
        parts: each part and how it ended, by name.
    """

    command: str
    settings: Settings
    seconds: float = 0.0
    parts: dict[str, tuple[Part, Outcome]] = dataclasses.field(default_factory=dict)

    def data(self) -> dict[str, Any]:
        """Return the report as plain data."""
        parts = {
            name: {"title": part.title, **dataclasses.asdict(outcome)} for name, (part, outcome) in self.parts.items()
        }
        about = {"device": self.settings.device, "quick": self.settings.quick, "seconds": round(self.seconds, 1)}
        return without_folders({"command": self.command, **about, "parts": parts}, self.settings.folder)

    @property
    def has_failures(self) -> bool:
        """Whether a part has failed or timed out."""
        return any(outcome.status in FAILED for _, outcome in self.parts.values())

    def summary(self) -> str:
        """Return a line on how many parts ended in each way, and how many targets were met."""
        outcomes = [outcome for _, outcome in self.parts.values()]
        statuses = [outcome.status for outcome in outcomes]
        counts = [f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)]
        met = [row[MET] for outcome in outcomes for row in outcome.rows if MET in row]
        targets = f"; {sum(met)} of {len(met)} targets met" if met else ""
        return f"Parts: {', '.join(counts)}{targets}; {self.seconds:.0f} s in all."


def without_folders(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the data with "…" in place of this folder, the checkout and the home folder, which may name the user."""
    text = json.dumps(data)
    for path in (folder, REPO, Path.home()):
        if path != path.parent:
            text = text.replace(json.dumps(str(path))[1:-1], "…")
    return json.loads(text)


def judge(row: Row, column: str, limit: float, at_most: bool = True) -> Row:
    """Return the row with a target for the number in a column, and whether it is met."""
    value = row[column]
    met = value <= limit if at_most else value >= limit
    return {**row, TARGET: f"{column} {'<=' if at_most else '>='} {limit:g}", MET: bool(met)}


def write_report(report: Report, folder: Path) -> None:
    """Write report.json and report.md."""
    data = report.data()
    for name, text in (("report.json", json.dumps(data, indent=2)), ("report.md", markdown(data))):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(f"{text}\n", encoding="utf-8")


def markdown(data: dict[str, Any]) -> str:
    """Return the report as Markdown, from the data in report.json alone."""
    title = "# GPU check" + (" (quick: tiny shapes, the figures mean nothing)" if data["quick"] else "")
    about = f"`{data['command']}`, on {data['device']}, {data['seconds']:.0f} s"
    texts = []
    for name, part in data["parts"].items():
        outcome = Outcome(**{field.name: part[field.name] for field in dataclasses.fields(Outcome)})
        texts.append(part_text(name, part["title"], outcome))
    return "\n".join([title, "", about, "", LEGEND, "", *texts])


def part_text(name: str, title: str, outcome: Outcome) -> str:
    """Return a part's heading, how it ended, and its table."""
    ended = outcome.status + (f": {outcome.message}" if outcome.message else "")
    lines = [f"## {title}", "", f"`{name}`: {ended} ({outcome.seconds:.0f} s)", ""]
    if outcome.rows:
        columns = list(dict.fromkeys(column for row in outcome.rows for column in row))
        table = [columns, ["---"] * len(columns)]
        table += [[shown(row.get(column)) for column in columns] for row in outcome.rows]
        lines += [f"| {' | '.join(cells)} |" for cells in table] + [""]
    return "\n".join(lines)


def shown(value: Any) -> str:
    """Return a value as it stands in a table: numbers with three digits or so."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, float):
        return str(value).replace("|", "\\|")
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"
