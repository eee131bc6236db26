"""The table of a comparison, with a row per group, and the CSV of all runs."""

import csv
import math
import statistics
from pathlib import Path

from examples.comparison.grid import format_value
from examples.comparison.groups import Group, Standing
from examples.comparison.ranking import Ranking
from examples.comparison.results import SCORES, differing_options
from hypernet.utils.atomic_files import atomic_write

FIGURES = ["step", *SCORES, "val_loss", "val_loss_base", "best_val_loss", "best_step", "reached", "last_loss"]
FIGURES += ["images_per_second", "peak_memory_gib", "file_bytes", "guard_returns", "problem"]


def build_table(ranking: Ranking) -> tuple[list[str], list[list[str]]]:
    """Return the headings, and a row of texts per group, numbered as in the plots.

    Columns that are empty for all groups are left out.
    """
    groups, several_sets = ranking.groups, len(ranking.sets) > 1
    columns = {
        "validation set": [str(g.validation_set.number) if several_sets and g.validation_set else "" for g in groups],
        "front": [_format_standing(group, ranking) for group in groups],
        **{
            name.replace("_", " "): [format_mean(group.values_of(name), "{:.2f}") for group in groups]
            for name in SCORES
        },
        "validation loss": [format_mean(group.values_of("val_loss"), "{:.4f}") for group in groups],
        "lowest": [format_mean(group.values_of("best_val_loss"), "{:.4f}") for group in groups],
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
        counts = [str(len(group.results))] * show_counts
        row = [str(i + 1), *([group.runs] * show_names), *group.values.values(), *counts]
        rows.append([*row, *(texts[i] for texts in columns.values())])
    return ["", *(["run"] * show_names), *groups[0].values, *(["runs"] * show_counts), *columns], rows


def _format_standing(group: Group, ranking: Ranking) -> str:
    """Return whether the group is on the front, and if it cannot be, why."""
    alone = "alone in its set" if ranking.is_alone(group) else "yes"
    standings = {Standing.FRONT: alone, Standing.BEHIND: "no", Standing.BELOW_LIMIT: f"below {ranking.min_fidelity:g}"}
    return standings.get(group.standing, "")


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


def write_csv(ranking: Ranking, path: Path) -> None:
    """Write every run with the options that differ, its standing and its figures, in the order of the table."""
    keys = differing_options(ranking.results)
    with atomic_write(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["run", *keys, *FIGURES, "standing", "validation_set"])
        for group in ranking.groups:
            for result in group.results:
                options = [format_value(result.options.get(key)) for key in keys]
                figures = [getattr(result, name) for name in FIGURES]
                number = result.validation_set.number if result.validation_set else ""
                writer.writerow([result.run.name, *options, *figures, group.standing.name.lower(), number])
