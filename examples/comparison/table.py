"""The table of a comparison, in which runs that differ only in the seed share a row, and the CSV of all runs."""

import csv
import dataclasses
import math
import statistics
from pathlib import Path
from typing import Any

from examples.comparison.grid import format_value
from examples.comparison.results import Result, differing_options, shorten_value
from hypernet.utils.atomic_files import atomic_write

FIGURES = ["step", "val_loss", "val_loss_base", "best_val_loss", "best_step", "reached", "last_loss"]
FIGURES += ["images_per_second", "peak_memory_gib", "file_bytes", "guard_returns", "problem"]


@dataclasses.dataclass
class Group:
    """Runs that differ only in the seed."""

    values: dict[str, str]  # of the options in which the groups differ
    results: list[Result]
    color: tuple[float, ...] = (0.5, 0.5, 0.5)

    @property
    def has_own_name(self) -> bool:
        """Whether the runs go by their names: they come from no grid, or differ in nothing."""
        return not self.values or not self.results[0].run.options

    @property
    def name(self) -> str:
        """What the legend calls the group."""
        return self.runs if self.has_own_name else ", ".join(f"{key} {value}" for key, value in self.values.items())

    @property
    def runs(self) -> str:
        """The names of its runs."""
        return ", ".join(result.run.name for result in self.results)

    @property
    def problem(self) -> str | None:
        """The first problem of its runs."""
        return next((result.problem for result in self.results if result.problem), None)

    def values_of(self, field: str) -> list[Any]:
        """Return a field of all results that have it."""
        return [value for value in (getattr(result, field) for result in self.results) if value is not None]


def group_runs(results: list[Result]) -> list[Group]:
    """Group runs that differ only in the seed; the group with the lowest mean loss comes first."""
    keys = [key for key in differing_options(results) if key != "seed"]
    groups: dict[tuple, Group] = {}
    for result in results:
        values = {key: shorten_value(result.options.get(key)) for key in keys}
        exact = tuple(format_value(result.options.get(key)) for key in keys)  # shortened values may coincide
        groups.setdefault(exact or (result.run.name,), Group(values, [])).results.append(result)
    if not keys and len(results) > 1 and len({result.options.get("seed") for result in results}) == len(results):
        groups = {("all",): Group({}, results)}

    def mean_rank(group: Group) -> list[float]:
        return [statistics.fmean(values) for values in zip(*(result.rank for result in group.results))]

    return sorted(groups.values(), key=mean_rank)


def build_table(groups: list[Group]) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row of texts per group. Columns that are empty for all groups are left out."""
    columns = {
        "validation loss": [format_mean(group.values_of("val_loss"), "{:.4f}") for group in groups],
        "best": [format_mean(group.values_of("best_val_loss"), "{:.4f}") for group in groups],
        "at step": [format_mean(group.values_of("best_step"), "{:.0f}") for group in groups],
        "reached at step": [_format_reached(group) for group in groups],
        "training loss": [format_mean(group.values_of("last_loss"), "{:.4f}") for group in groups],
        "images / s": [format_mean(group.values_of("images_per_second"), "{:.2f}") for group in groups],
        "memory, GiB": [format_mean(group.values_of("peak_memory_gib"), "{:.2f}") for group in groups],
        "file, MB": [format_mean([size / 1e6 for size in group.values_of("file_bytes")], "{:.2f}") for group in groups],
        "rollbacks": [format_mean(group.values_of("guard_returns"), "{:.1f}") for group in groups],
        "problem": [(group.problem or "").removeprefix("error: ") for group in groups],
    }
    if not any(sum(group.values_of("guard_returns")) for group in groups):
        del columns["rollbacks"]
    columns = {heading: texts for heading, texts in columns.items() if any(texts)}
    show_names = groups[0].has_own_name
    show_counts = any(len(group.results) > 1 for group in groups)
    rows = []
    for i, group in enumerate(groups):
        row = [*([group.runs] * show_names), *group.values.values(), *([str(len(group.results))] * show_counts)]
        rows.append([*row, *(texts[i] for texts in columns.values())])
    return [*(["run"] * show_names), *groups[0].values, *(["runs"] * show_counts), *columns], rows


def _format_reached(group: Group) -> str:
    """Return the step at which the runs reached the validation loss of --reach; "1 of 3" if not all of them did."""
    reached = group.values_of("reached")
    if 0 < len(reached) < len(group.results):
        return f"{len(reached)} of {len(group.results)}"
    return format_mean(reached, "{:.0f}")


def format_mean(values: list[float], form: str) -> str:
    """Return the mean, with ± the standard deviation of several values; counts those that are not finite."""
    finite = [value for value in values if math.isfinite(value)]
    lost = f"{len(values) - len(finite)} not finite" if len(finite) < len(values) else ""
    if not finite:
        return lost
    text = form.format(statistics.fmean(finite))
    deviation = form.format(statistics.stdev(finite)) if len(finite) > 1 else "0"
    text = f"{text} ± {deviation}" if float(deviation) else text
    return f"{text}, {lost}" if lost else text


def write_csv(results: list[Result], path: Path) -> None:
    """Write every run with the options that differ, and its figures."""
    keys = differing_options(results)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *keys, *FIGURES])
        for result in results:
            options = [format_value(result.options.get(key)) for key in keys]
            writer.writerow([result.run.name, *options, *(getattr(result, name) for name in FIGURES)])
