"""The prompts of previews, each with the settings of its images. Imports no torch."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hypernet.config import TrainingConfig, parse_size
from hypernet.generation.written_prompt import RANDOM, WrittenPrompt
from hypernet.utils.errors import UserError

# Setting -> the option that applies to prompts without a value of their own
OPTIONS = {
    "negative_prompt": "validation_negative_prompt",
    "sampler": "validation_sampler",
    "seed": "validation_seed",
    "size": "validation_resolution",
    "steps": "validation_inference_steps",
    "guidance_scale": "validation_guidance_scale",
}


@dataclasses.dataclass(frozen=True)
class PreviewPrompt:
    """A prompt to preview, with all settings of its images.

    Attributes:
        seed: of the first image, or `RANDOM`.
        size: (width, height) in pixels.
        written: the prompt as written, and where.
        chosen: the settings that the user has chosen, except those that `examples/generate.py` takes from the run.
    """

    prompt: str
    negative_prompt: str
    sampler: str | None  # None is the model's
    seed: int
    size: tuple[int, int]
    steps: int
    guidance_scale: float
    written: WrittenPrompt
    chosen: tuple[str, ...] = ()

    def source(self, setting: str) -> str:
        """Return where a setting comes from, for messages: an option, or a place in a file."""
        sides = {"width", "height"} if setting == "size" else set()
        is_own = ({setting} | sides) & set(self.written.settings)
        return f"{self.written.where}: {setting}" if is_own else f"--{OPTIONS[setting]}"

    def with_texts(self, fill: Callable[[str], str]) -> "PreviewPrompt":
        """Return the prompt with its placeholders filled."""
        return dataclasses.replace(self, prompt=fill(self.prompt), negative_prompt=fill(self.negative_prompt))

    def with_seed(self, random_seed: int) -> "PreviewPrompt":
        """Return the prompt with this seed in place of `RANDOM`."""
        return dataclasses.replace(self, seed=random_seed) if self.seed == RANDOM else self

    def settings(self) -> dict[str, Any]:
        """Return the prompt and its settings as plain JSON data."""
        values = {name: getattr(self, name) for name in ("prompt", *OPTIONS)}
        return values | {"size": list(self.size)}

    def flags(self) -> list[str]:
        """Return the flags of `examples/generate.py` that the chosen settings need."""
        return [f"--{name}={_shown(getattr(self, name))}" for name in self.chosen]


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def preview_prompts(config: TrainingConfig) -> list[PreviewPrompt]:
    """Return the prompts of the previews: those of --validation_prompt, then those of --validation_prompts_file.

    Raises:
        UserError: for a prompt or setting that cannot work.
    """
    written = [WrittenPrompt(f"--validation_prompt {text}", text) for text in config.validation_prompt or []]
    if config.validation_prompts_file:
        from hypernet.generation.prompt_files import read_prompts  # loads Pillow

        written += read_prompts(Path(config.validation_prompts_file), "--validation_prompts_file")
    return [_complete(each, config) for each in written]


def _complete(written: WrittenPrompt, config: TrainingConfig) -> PreviewPrompt:
    """Return a prompt with its own settings, and those of the options for the rest."""
    for tag in re.findall(r"<(?:lora|hypernet):[^>]*>", written.text):
        problem = f"{tag} would be read as text; load LoRAs with --lora; the hypernetwork needs no tag"
        raise UserError(f"{written.where}: {problem}")
    options = {name: getattr(config, option) for name, option in OPTIONS.items()}
    options["seed"] = config.seed if config.validation_seed is None else config.validation_seed
    options["size"] = parse_size(config.validation_resolution or config.resolution)
    own = dict(written.settings)
    sides = own.pop("width", None), own.pop("height", None)
    if any(sides):
        own["size"] = tuple(side or usual for side, usual in zip(sides, options["size"]))
    in_options = ("negative_prompt", "sampler", "seed", "size")
    chosen = {*own, *(name for name in in_options if config.changed([OPTIONS[name]]))}
    settings: dict[str, Any] = options | own
    return PreviewPrompt(written.text, **settings, written=written, chosen=tuple(filter(chosen.__contains__, OPTIONS)))


def preview_labels(prompts: Sequence[PreviewPrompt]) -> list[str]:
    """Return a label for each prompt: its text, preceded by the settings in which it differs from the same text."""
    labels = []
    for each in prompts:
        alike = [other for other in prompts if other.prompt == each.prompt]
        differing = [name for name in OPTIONS if len({getattr(other, name) for other in alike}) > 1]
        values = [(name, getattr(each, name)) for name in differing]
        shown = [f"{name} {'default' if value in (None, '') else _shown(value)}" for name, value in values]
        labels.append(f"{', '.join(shown)}: {each.prompt}" if shown else each.prompt)
    return labels


def check_sizes(prompts: Sequence[PreviewPrompt], multiple: int) -> None:
    """Raise UserError if a preview has a size of its own whose sides are not multiples of `multiple`."""
    for each in prompts:
        if "size" in each.chosen and any(side % multiple for side in each.size):
            problem = f"both sides must be multiples of {multiple} for this model"
            raise UserError(f"{each.source('size')} {_shown(each.size)}: {problem}")


# --- What previews leave out of the WebUI's parameters

# Fields that are honored, compared with the model below, or without an effect on the image
READ = {"Steps", "Sampler", "Schedule type", "Timestep spacing", "CFG scale", "Seed", "Size", "Size-1", "Size-2"}
READ |= {"Model", "Model hash", "Clip skip", "VAE", "VAE hash", "Version", "Hypernet hashes", "Lora hashes", "Hashes"}


def infotext_note(
    prompts: Sequence[PreviewPrompt], model_hash: str, clip_skip: int | None, reads_emphasis: bool
) -> str | None:
    """Return a note on what previews leave out of the WebUI's parameters; None if nothing.

    Args:
        model_hash: of the base model.
        clip_skip: in use; None if the WebUI's does not apply.
        reads_emphasis: whether brackets in prompts are weights.
    """
    found = [each for each in prompts if each.written.fields]
    fields = [each.written.fields for each in found]
    ignored = [name for each in fields for name, value in each.items() if _is_ignored(name, value)]
    parts = []
    if names := list(dict.fromkeys(ignored)):
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        parts.append(f"previews leave out {', '.join(names[:5])}{more}")
    hashes = [(each.get("Model hash", model_hash), each.get("Model", "")) for each in fields]
    if others := [f"{name} ({digest})".strip() for digest, name in hashes if digest != model_hash]:
        parts.append(f"it was made with another model, {others[0]}")
    skips = {each.get("Clip skip", "1") for each in fields}
    if clip_skip is not None and (differing := sorted(skips - {str(clip_skip)})):
        parts.append(f"it was made with clip skip {differing[0]}, and this run has {clip_skip} (--clip_skip)")
    texts = [text for each in found for text in (each.prompt, each.negative_prompt)]
    if not reads_emphasis and any(re.search(r"(?<!\\)[(\[]", text) for text in texts):
        parts.append("brackets are read as text (--prompt_emphasis reads them as weights)")
    return f"{found[0].written.where}: {'; '.join(parts)}" if parts else None


def _is_ignored(name: str, value: str) -> bool:
    return name not in READ and (name, value) != ("RNG", "CPU")
