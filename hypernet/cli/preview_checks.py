"""Check the options on previews. Imports torch only if a sampler is named, to look it up."""

import math

from hypernet.config import SIZE_MULTIPLE, TrainingConfig, parse_size
from hypernet.generation.preview_prompts import OPTIONS, preview_prompts
from hypernet.generation.written_prompt import RANDOM, SEED_END, SEED_RULE
from hypernet.utils.errors import UserError, one_line

MAX_STEPS = 1000
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
    seed, steps, scale = config.validation_seed, config.validation_inference_steps, config.validation_guidance_scale
    if seed is not None and not RANDOM <= seed < SEED_END:
        raise UserError(f"--validation_seed {seed}: {SEED_RULE}")
    if not 1 <= steps <= MAX_STEPS:
        raise UserError(f"--validation_inference_steps {steps}: it must be from 1 to {MAX_STEPS}")
    if not (math.isfinite(scale) and scale >= 0):
        raise UserError(f"--validation_guidance_scale {scale}: it must be 0 or more")
    if config.validation_resolution is not None:
        try:
            size = parse_size(config.validation_resolution)
        except ValueError as error:
            raise UserError(f"--validation_resolution {error}") from None
        if any(side % SIZE_MULTIPLE for side in size):
            problem = f"both sides must be multiples of {SIZE_MULTIPLE}"
            raise UserError(f"--validation_resolution {config.validation_resolution}: {problem}")
