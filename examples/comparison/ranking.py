"""Order the runs of a comparison by what the figures can tell.

The validation loss alone cannot tell a good run from one whose images no longer show their prompts. So runs are judged
by two figures, prompt fidelity and style distance, and the runs that no other beats in both are the front (Pareto).
Which of these is best is for the user's eyes to decide.
"""

import dataclasses
import math

from examples.comparison.groups import Group, Standing, group_runs
from examples.comparison.results import Result
from examples.comparison.validation_sets import ValidationSet, find_validation_sets
from hypernet.formats.trained_folder import previewed_prompts
from hypernet.utils.errors import counted

MAX_SETS = 8  # validation sets to describe


@dataclasses.dataclass
class Ranking:
    """The runs of a comparison in the order of the page."""

    groups: list[Group]
    sets: list[ValidationSet]
    min_fidelity: float  # of runs on the front

    @property
    def results(self) -> list[Result]:
        """All runs; the fronts of all validation sets come first, then what is behind them."""
        return [result for group in sorted(self.groups, key=lambda each: each.standing) for result in group.results]

    def is_alone(self, group: Group) -> bool:
        """Whether a group can be compared with no other: there are several validation sets, and it has one to itself."""
        sets = [other.validation_set for other in self.groups if other.has_scores]
        return len(self.sets) > 1 and group.has_scores and sets.count(group.validation_set) == 1

    def describe(self) -> list[str]:
        """Return the lines below the title: how the order arises, and what cannot be compared."""
        scored = [result for group in self.groups for result in group.results if result.has_scores]
        unmeasured = sum(len(group.results) for group in self.groups if group.standing == Standing.UNMEASURED)
        lines = _describe_order(self.min_fidelity) if scored else []
        if unmeasured and scored:
            lines.append(f"{counted(unmeasured, 'run')} without these figures: after the others, in the order given.")
        elif unmeasured:
            lines.append(
                "In the order given: the runs lack prompt fidelity or style distance, which earlier versions did not "
                "measure, and losses alone do not tell a good run from a ruined one."
            )
        if len(self.sets) > 1:
            named = ", ".join(each.describe() for each in self.sets[:MAX_SETS])
            more = f", and {len(self.sets) - MAX_SETS} more" if len(self.sets) > MAX_SETS else ""
            different = "The runs were validated on different images, captions or base models"
            lines.append(f"{different}, so they are compared only within a validation set: {named}{more}.")
        if len({_prompts(result.options) for result in scored}) > 1:
            lines.append("The runs have different validation prompts; each was measured on its own.")
        return lines


def rank(results: list[Result]) -> Ranking:
    """Group the runs, and order the groups: by validation set, then by standing, then by score.

    Groups without figures follow in the order of `results`, and failed ones come last.
    """
    sets = find_validation_sets(results)
    groups = group_runs(results)
    # one limit for all runs: the strictest
    limits = [result.options.get("min_prompt_fidelity") or 0.0 for result in results if result.has_scores]
    min_fidelity = max(limits, default=0.0)
    for group in groups:
        group.standing = _standing(group, min_fidelity)
    for group in groups:
        if group.standing == Standing.BEHIND and _clamp(group.mean("style_distance")) < 1:
            if not any(_dominates(other, group) for other in groups):
                group.standing = Standing.FRONT
    return Ranking(sorted(groups, key=_sort_key), sets, min_fidelity)


def _standing(group: Group, min_fidelity: float) -> Standing:
    """Return where a group stands, except for the front."""
    if group.problem:
        return Standing.FAILED
    if not group.has_scores:
        return Standing.UNMEASURED
    return Standing.BELOW_LIMIT if group.mean("prompt_fidelity") < min_fidelity else Standing.BEHIND


def _dominates(other: Group, group: Group) -> bool:
    """Whether another group of the validation set is at least as good in both figures, and better in one."""
    if other.validation_set is not group.validation_set or other.standing > Standing.BEHIND:
        return False
    theirs, ours = _position(other), _position(group)
    return theirs[0] <= ours[0] and theirs[1] >= ours[1] and theirs != ours


def _position(group: Group) -> tuple[float, float]:
    """Return style distance and prompt fidelity as the score counts them, within 0 and 1."""
    return _clamp(group.mean("style_distance")), _clamp(group.mean("prompt_fidelity"))


def _clamp(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _sort_key(group: Group) -> tuple[int, int, int, float]:
    score = group.mean("score")
    if group.standing >= Standing.UNMEASURED:
        return group.standing, 0, 0, 0.0
    assert group.validation_set is not None
    return 0, group.validation_set.number, group.standing, -score if math.isfinite(score) else math.inf


def _describe_order(min_fidelity: float) -> list[str]:
    limit = f"a prompt fidelity of at least {min_fidelity:g} and " if min_fidelity else ""
    below = " Runs below that fidelity come after the others." if min_fidelity else ""
    return [
        "First come the runs on the front: every other run has a lower prompt fidelity (above 1 counts as 1) or a higher "
        f"style distance. Only runs with {limit}a style distance below 1 can be on it.{below}",
        "Within each part, the highest score comes first. The validation loss does not count: it also falls in runs "
        "that have lost their prompts.",
    ]


def _prompts(options: dict) -> tuple[str, ...]:
    """Return the prompts that a run was measured on, whatever its name."""
    return tuple(prompt.replace(str(options.get("name")), "[name]") for prompt in previewed_prompts(options))
