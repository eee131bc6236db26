"""The settings of an image."""

import dataclasses
import math

from hypernet.config import SIZE_MULTIPLE
from hypernet.generation.written_prompt import NUMBER_RULES
from hypernet.stable_diffusion.schedulers import find_sampler
from hypernet.utils.errors import UserError


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """Everything that shapes one image, apart from the base model.

    The names and the order of the fields are part of the cache key in examples/xy_plot.py.

    Raises:
        UserError: for a value that cannot work.
    """

    prompt: str  # without tags
    negative_prompt: str = ""
    seed: int = 0
    steps: int = 25
    guidance_scale: float = 7.5
    size: tuple[int, int] | None = None  # width, height; default: the model's
    sampler: str | None = None  # default: the model's
    hypernetworks: tuple[tuple[str, float], ...] = ()  # (path or Hub id, strength), in the order they are applied

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise UserError(f"--seed {self.seed}: it must be at least 0 and below 2**63")
        for name in ("steps", "guidance_scale"):
            _, is_valid, rule = NUMBER_RULES[name]
            if not is_valid(getattr(self, name)):
                raise UserError(f"--{name} {getattr(self, name)}: {rule}")
        if not all(math.isfinite(strength) for _, strength in self.hypernetworks):
            raise UserError("--strength: it must be a finite number")
        paths = [path for path, _ in self.hypernetworks]
        for path in paths:
            if paths.count(path) > 1:
                raise UserError(f"{path}: it is named twice for one image; name it once, with one strength")
        if self.size and any(side < SIZE_MULTIPLE or side % SIZE_MULTIPLE for side in self.size):
            shown = f"{self.size[0]}x{self.size[1]}"
            raise UserError(f"--size {shown}: both sides must be positive multiples of {SIZE_MULTIPLE}")
        if self.sampler is not None:
            find_sampler(self.sampler)

    @property
    def batch_key(self) -> tuple:
        """The settings that all images of a batch must share."""
        return self.hypernetworks, self.sampler, self.size, self.steps, self.guidance_scale
