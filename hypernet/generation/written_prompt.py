"""A prompt with the settings written beside it. Imports no torch."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

RANDOM = -1  # as a seed
SEED_END = 2**62  # above all seeds
MAX_STEPS = 1000
# Setting -> its type, whether a number can work, and the rule for messages
NUMBER_RULES: dict[str, tuple[type, Callable[[float], bool], str]] = {
    "seed": (
        int,
        lambda number: RANDOM <= number < SEED_END,
        "it must be at least 0 and below 2**62, or -1 for a random one",
    ),
    "steps": (int, lambda number: 1 <= number <= MAX_STEPS, f"it must be from 1 to {MAX_STEPS}"),
    "guidance_scale": (float, lambda number: 0 <= number < math.inf, "it must be 0 or more"),
}


@dataclasses.dataclass(frozen=True)
class WrittenPrompt:
    """A prompt as written, with the settings beside it.

    Attributes:
        where: the option, or the file and line, for messages.
        text: the prompt.
        settings: its own settings, with the size either as `size` or as `width` and `height`.
        fields: the fields of the WebUI's parameters.
    """

    where: str
    text: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
