"""Runs that differ in nothing but the seed are one line: the table of a comparison, and its CSV with every run."""

import csv
import dataclasses
import math
import statistics
from pathlib import Path

from examples.comparison.grid import shown
from examples.comparison.results import Result, differing, short
from hypernet.utils.atomic_files import atomic_write


@dataclasses.dataclass
class Group:
    """Runs that differ in nothing but the seed."""

    values: dict  # of the options that differ among the groups
    results: list[Result]
    color: tuple = (0.5, 0.5, 0.5)

    @property
    def name(self) -> str:
        told = ", ".join(f"{key} {value}" for key, value in self.values.items())
        return told if told and self.results[0].run.options else self.runs

    @property
    def runs(self) -> str:
        return ", ".join(result.run.name for result in self.results)

    @property
    def problem(self) -> str | None:
        return next((result.problem for result in self.results if result.problem), None)

    def of(self, name: str) -> list:
        """What those of its runs have that have it."""
        return [value for value in (getattr(result, name) for result in self.results) if value is not None]


def group_runs(results: list[Result]) -> list[Group]:
    """The best first, by the mean held-out loss of each group's runs."""
    keys, groups = [key for key in differing(results) if key != "seed"], {}
    for result in results:
        values = {key: short(result.options.get(key)) for key in keys}
        whole = tuple(shown(result.options.get(key)) for key in keys)  # what is alike when shortened is not the same
        groups.setdefault(whole or (result.run.name,), Group(values, [])).results.append(result)
    if not keys and len(results) > 1 and len({result.options.get("seed") for result in results}) == len(results):
        groups = {"all": Group({}, results)}

    def rank(group):
        ranks = [result.rank for result in group.results]
        return [statistics.fmean(values) for values in zip(*ranks)]

    return sorted(groups.values(), key=rank)


def table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Headings, and a row of texts for each group; columns that no run has anything to say in are left out."""
    columns = {
        "held-out loss": [spread(group.of("val_loss"), "{:.4f}") for group in groups],
        "best": [spread(group.of("best_val_loss"), "{:.4f}") for group in groups],
        "at step": [spread(group.of("best_step"), "{:.0f}") for group in groups],
        "reached at step": [_reached(group) for group in groups],
        "training loss": [spread(group.of("last_loss"), "{:.4f}") for group in groups],
        "images / s": [spread(group.of("images_per_second"), "{:.2f}") for group in groups],
        "memory, GiB": [spread(group.of("peak_memory_gib"), "{:.2f}") for group in groups],
        "file, MB": [spread([size / 1e6 for size in group.of("file_bytes")], "{:.2f}") for group in groups],
        "guard went back": [spread(group.of("guard_returns"), "{:.1f}") for group in groups],
        "": [group.problem or "" for group in groups],
    }
    if not any(sum(group.of("guard_returns")) for group in groups):
        del columns["guard went back"]
    columns = {name: texts for name, texts in columns.items() if any(texts)}
    several = any(len(group.results) > 1 for group in groups)
    named = (
        not groups[0].values or not groups[0].results[0].run.options
    )  # those that were there have names of their own
    rows = []
    for i, group in enumerate(groups):
        row = [*([group.runs] * named), *group.values.values(), *([str(len(group.results))] * several)]
        rows.append([*row, *(texts[i] for texts in columns.values())])
    return [*(["run"] * named), *groups[0].values, *(["runs"] * several), *columns], rows


def _reached(group: Group) -> str:
    """At which step the held-out loss was as low as asked, if all its runs came there; else how many did."""
    reached = group.of("reached")
    return (
        f"{len(reached)} of {len(group.results)}"
        if 0 < len(reached) < len(group.results)
        else spread(reached, "{:.0f}")
    )


def spread(values: list, form: str) -> str:
    """The value, or the mean of several and their standard deviation; those that are not finite are counted apart."""
    finite = [value for value in values if math.isfinite(value)]
    lost = f"{len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
    if not finite:
        return lost
    text = form.format(statistics.fmean(finite))
    spread = form.format(statistics.stdev(finite)) if len(finite) > 1 else "0"
    text = f"{text} ± {spread}" if float(spread) else text
    return f"{text}, {lost}" if lost else text


def write_csv(results: list[Result], path: Path):
    """Every run with its options and figures."""
    keys = differing(results)
    names = ["step", "val_loss", "val_loss_base", "best_val_loss", "best_step", "reached", "last_loss"]
    names += ["images_per_second", "peak_memory_gib", "file_bytes", "guard_returns", "problem"]
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *keys, *names])
        for result in results:
            options = [shown(result.options.get(key)) for key in keys]
            writer.writerow([result.run.name, *options, *(getattr(result, name) for name in names)])
