"""A prompt with the settings written beside it. Imports no torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

RANDOM = -1  # as a seed
SEED_END = 2**62  # above all seeds
SEED_RULE = "it must be at least 0 and below 2**62, or -1 for a random one"


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
