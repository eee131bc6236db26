"""Group the runs of a comparison that differ only in the seed."""

import dataclasses
import enum
import math
import statistics
from typing import Any

from examples.comparison.grid import format_value
from examples.comparison.results import Result, differing_options, shorten_value
from examples.comparison.validation_sets import ValidationSet


class Standing(enum.IntEnum):
    """Where a group stands among those of its validation set, best first."""

    FRONT = 0  # all others have a lower prompt fidelity or a higher style distance
    BEHIND = 1
    BELOW_LIMIT = 2  # its prompt fidelity is too low
    UNMEASURED = 3
    FAILED = 4  # a run has failed or has not finished


@dataclasses.dataclass
class Group:
    """Runs that differ only in the seed."""

    values: dict[str, str]  # of the options in which the groups differ
    results: list[Result]
    standing: Standing = Standing.UNMEASURED
    color: tuple[float, float, float, float] = (0.5, 0.5, 0.5, 1.0)

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

    @property
    def validation_set(self) -> ValidationSet | None:
        """What its runs were measured on; None if nothing was measured."""
        return next((result.validation_set for result in self.results if result.validation_set), None)

    @property
    def has_scores(self) -> bool:
        """Whether prompt fidelity and style distance of at least one run are known."""
        return any(result.has_scores for result in self.results)

    def values_of(self, field: str) -> list[Any]:
        """Return a field of all results that have it."""
        return [value for value in (getattr(result, field) for result in self.results) if value is not None]

    def mean(self, field: str) -> float:
        """Return the mean of a field over the runs that have it; NaN if none has."""
        finite = [value for value in self.values_of(field) if math.isfinite(value)]
        return statistics.fmean(finite) if finite else math.nan

    def deviation(self, field: str) -> float:
        """Return the standard deviation of a field; 0 for a single run."""
        finite = [value for value in self.values_of(field) if math.isfinite(value)]
        return statistics.stdev(finite) if len(finite) > 1 else 0.0


def group_runs(results: list[Result]) -> list[Group]:
    """Group runs that differ only in the seed and were measured on the same images; in the order of the results."""
    keys = [key for key in differing_options(results) if key != "seed"]
    groups: dict[tuple, list[Result]] = {}
    for result in results:
        exact = tuple(format_value(result.options.get(key)) for key in keys)  # shortened values may coincide
        groups.setdefault(exact or (result.run.name,), []).append(result)
    if not keys and len(results) > 1 and len({result.options.get("seed") for result in results}) == len(results):
        groups = {("all",): results}
    return [
        Group({key: shorten_value(members[0].options.get(key)) for key in keys}, members)
        for same_options in groups.values()
        for members in _split_by_validation_set(same_options)
    ]


def _split_by_validation_set(results: list[Result]) -> list[list[Result]]:
    """Split results by validation set; those that have measured nothing stay with the first."""
    first = next((result.validation_set for result in results if result.validation_set), None)
    parts: dict[ValidationSet | None, list[Result]] = {}
    for result in results:
        parts.setdefault(result.validation_set or first, []).append(result)
    return list(parts.values())
