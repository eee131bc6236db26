"""Check the paths among the training options, and name the hypernetwork after its folder. Imports no torch."""

from pathlib import Path

from hypernet.config import PATH_OPTIONS, TrainingConfig
from hypernet.data.folder_repeats import split_repeats
from hypernet.stable_diffusion.loras import split_lora
from hypernet.utils.errors import UserError, one_line, quoted_if_needed
from hypernet.utils.user_paths import name_problem, path_problem

PROMPTS = "validation_prompts_file"
SPLITTERS = {"lora": split_lora, "train_data_dir": split_repeats}  # of a path and the number after it


def check_paths(config: TrainingConfig) -> None:
    """Check that the paths can be meant for this machine; looking up an impossible one fails with an unclear error.

    Raises:
        UserError: for the first one that cannot.
    """
    template = "template" if config.template.lower().endswith(".txt") else None
    for option in (*PATH_OPTIONS, "output_dir", "cache_dir", "resume_from_checkpoint", "lora", template, PROMPTS):
        value = option and getattr(config, option)
        for text in value if isinstance(value, list) else [value or ""]:
            path = SPLITTERS[option](text)[0] if text and option in SPLITTERS else text
            if problem := path_problem(path):
                raise UserError(f"--{option} {one_line(text)}: {problem}")
    if not config.output_dir:
        raise UserError("--output_dir is empty: name a folder for everything the run writes")


def name_of_folder(config: TrainingConfig) -> str:
    """Return the output folder's name, which is the hypernetwork's unless --name is given."""
    name = Path(config.output_dir).resolve().name
    if problem := name_problem(name):
        given = f"--output_dir {quoted_if_needed(config.output_dir)}"
        raise UserError(f"{given}: it gives the hypernetwork its name, but {problem}; name another, or add --name")
    return name
