"""Choose from sequences."""

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def spread(values: Sequence[Item], count: int) -> list[Item]:
    """Return up to `count` of the values, spread evenly."""
    count = min(count, len(values))
    return [values[number * len(values) // count] for number in range(count)]
