"""Check the options on previews. Imports torch only if a sampler is named, to look it up."""

from hypernet.config import SIZE_MULTIPLE, TrainingConfig, parse_size
from hypernet.generation.preview_prompts import OPTIONS, preview_prompts
from hypernet.generation.written_prompt import NUMBER_RULES
from hypernet.utils.errors import UserError, one_line

NEED_PROMPT = ("negative_prompt", "sampler", "seed", "size")  # whose options require a prompt


def check_previews(config: TrainingConfig) -> None:
    """Check the prompts of the previews and their settings, those in --validation_prompts_file included.

    Raises:
        UserError: for the first that cannot work.
    """
    _check_values(config)
    prompts = preview_prompts(config)
    if not prompts:
        for name, value in config.changed(OPTIONS[setting] for setting in NEED_PROMPT).items():
            raise UserError(f"--{name} {one_line(value)}: it requires --validation_prompt or --validation_prompts_file")
    if any(each.sampler for each in prompts):
        from hypernet.stable_diffusion.schedulers import find_sampler  # takes seconds; the run needs it anyway

        for each in prompts:
            if each.sampler:
                find_sampler(each.sampler, each.source("sampler"))


def _check_values(config: TrainingConfig) -> None:
    for setting, (_, is_valid, rule) in NUMBER_RULES.items():
        value = getattr(config, OPTIONS[setting])
        if value is not None and not is_valid(value):
            raise UserError(f"--{OPTIONS[setting]} {value}: {rule}")
    if config.validation_resolution is not None:
        try:
            size = parse_size(config.validation_resolution)
        except ValueError as error:
            raise UserError(f"--validation_resolution {error}") from None
        if any(side % SIZE_MULTIPLE for side in size):
            problem = f"both sides must be multiples of {SIZE_MULTIPLE}"
            raise UserError(f"--validation_resolution {config.validation_resolution}: {problem}")
