"""Prepare the prompts of a run's previews: placeholders, the random seed, and what the base model supports."""

import random
from collections.abc import Sequence

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hypernet.data.image_source import ImageSource
from hypernet.data.prompts import fill_template
from hypernet.generation.preview_prompts import PreviewPrompt, infotext_note
from hypernet.generation.sampling import check_steps
from hypernet.generation.written_prompt import RANDOM
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.schedulers import build_scheduler
from hypernet.training.accelerator import print_main
from hypernet.training.previews import Previewer
from hypernet.training.run import Run
from hypernet.training.run_folder import RunFolder
from hypernet.training.run_options import PREVIEW_SEED, PREVIEWS
from hypernet.utils.image_grid import save_png

SEEDS = 2**32  # the number of seeds in the WebUI


def fix_random_seed(
    prompts: Sequence[PreviewPrompt], folder: RunFolder, accelerator: Accelerator, overwrite: bool
) -> list[PreviewPrompt]:
    """Replace the seed -1 with a random one: that of the run in the folder, if it has one, so that previews compare.

    Args:
        overwrite: whether the run in the folder will be deleted.
    """
    recorded = None if overwrite else folder.identity.record.get(PREVIEW_SEED)
    known = recorded if type(recorded) is int and 0 <= recorded < SEEDS else None
    if known is not None:
        folder.extras[PREVIEW_SEED] = known
    if not any(prompt.seed == RANDOM for prompt in prompts):
        return list(prompts)
    drawn = random.SystemRandom().randrange(SEEDS) if known is None else known
    (seed,) = broadcast_object_list([drawn])  # the same on all processes
    folder.extras[PREVIEW_SEED] = seed
    print_main(accelerator, f"the random seed of the previews is {seed}; the run keeps it")
    return [prompt.with_seed(seed) for prompt in prompts]


def fill_placeholders(
    prompts: Sequence[PreviewPrompt], source: ImageSource, row: int, name: str
) -> list[PreviewPrompt]:
    """Fill the placeholders of templates, as in the prompt of the image in this row of the source."""
    caption, folder = source.captions[row][0], source.words[row] if source.words else "[folder]"
    return [
        prompt.with_texts(lambda text: fill_template(text.replace("[folder]", folder), caption, name))
        for prompt in prompts
    ]


def record_previews(prompts: Sequence[PreviewPrompt], folder: RunFolder) -> None:
    """Add the prompts with all their settings to run.json."""
    if prompts:
        folder.extras[PREVIEWS] = [prompt.settings() for prompt in prompts]


def check_samplers(prompts: Sequence[PreviewPrompt], models: StableDiffusion, accelerator: Accelerator) -> None:
    """Check that the model supports the samplers and steps; print a note on WebUI parameters that are left out.

    Raises:
        UserError: if it does not.
    """
    own = models.pipeline.scheduler
    for prompt in (each for each in prompts if each.chosen):
        name, option = prompt.sampler, prompt.source("sampler")
        scheduler = own if name is None else build_scheduler(name, own.config, option)
        check_steps(scheduler, prompt.steps, prompt.source("steps"))
    base = models.base
    if any(prompt.written.fields for prompt in prompts):
        clip_skip = None if base.is_xl else base.clip_skip
        if note := infotext_note(prompts, models.hash, clip_skip, base.source.prompt_emphasis):
            print_main(accelerator, f"note: {note}")


def save_first_previews(run: Run, previewer: Previewer) -> None:
    """Save the previews without the hypernetwork as those of step 0; a resumed run keeps those it began with."""
    path = run.folder.previews / "step-000000.png"
    grid = previewer.base_grid()
    if grid is not None and not (run.checkpoint is not None and path.exists()):
        with run.failures.tolerate(f"{path.parent} could not be written to"):
            save_png(grid, path)
