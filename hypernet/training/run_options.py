"""Compare a command's options with the run in its output folder: is it the same run, and which requests are open?"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hypernet.config import CHANGEABLE, INEXACT, PATH_OPTIONS, TrainingConfig, parse_numbers, parse_size
from hypernet.data.folder_repeats import absolute_folders, split_folders
from hypernet.formats.trained_folder import RUN_FILE
from hypernet.stable_diffusion.loras import absolute_lora, split_lora
from hypernet.training.lr_schedule import parse_schedule
from hypernet.utils.hashing import file_sha256
from hypernet.utils.reading import read_json_object

Options = Mapping[str, Any]

BEGUN_BY = "begun_by"  # in run.json: the options of the command whose --overwrite began the run
PREVIEWS = "previews"  # in run.json: the prompts with all settings of their previews
PREVIEW_SEED = "preview_seed"  # in run.json: the random seed of the previews, for their seed -1
# Options that locate something; `run_identity` compares the contents
PLACE_OPTIONS = {*PATH_OPTIONS, "lora", "template", "revision", "variant"} - {"init_from"}
# Options whose changes are not reported: locations and memory use
UNREPORTED = {"output_dir", "overwrite", "resume_from_checkpoint", "cache_dir", "gradient_checkpointing"}
UNREPORTED |= {"enable_tiling", "use_8bit_adam", "init_from", *PLACE_OPTIONS}  # --optimizer names the 8-bit optimizer
# Options that a resumed run may change, although a new run with them would learn something else
LEARNING = {"learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "guard"}
LEARNING |= {"min_prompt_fidelity", "clip_grad_mode", "max_grad_norm", "max_grad_value"}
NO_END = 10**9  # stands for the end of the training
SCHEDULES = ("learning_rate", "max_grad_norm", "max_grad_value")
# How to parse options that have several equivalent spellings
READERS: dict[str, Callable[[str], Any]] = {
    "layer_structure": parse_numbers,
    "dropout_structure": parse_numbers,
    "widths": lambda text: sorted(set(parse_numbers(text))),
    "resolution": parse_size,
    "validation_resolution": parse_size,
    **dict.fromkeys(SCHEDULES, lambda text: parse_schedule(text, NO_END)),
}


def read_record(folder: Path) -> dict[str, Any]:
    """Return the options of the run in a folder as it has recorded them; empty if there is no run.

    Options that an older version did not have, and damaged ones, have their defaults.
    """
    if not (folder / RUN_FILE).is_file():
        return {}
    try:
        record = read_json_object(folder / RUN_FILE)
    except (OSError, ValueError):
        record = {}
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    return {**defaults, **{name: value for name, value in record.items() if name not in defaults or _is_plain(value)}}


def _is_plain(value: Any) -> bool:
    """Whether this can be the value of an option."""
    return isinstance(value, str | int | float | None) or (
        isinstance(value, list) and all(isinstance(item, str) for item in value)
    )


def portable_options(config: TrainingConfig) -> dict[str, Any]:
    """Return all options with the paths of base model and images made absolute, so that they work from any folder."""
    options = dataclasses.asdict(config)
    for key in (*PATH_OPTIONS, "validation_prompts_file"):
        if isinstance(options[key], str) and Path(options[key]).exists():
            options[key] = str(Path(options[key]).resolve())
    options["train_data_dir"] = absolute_folders(config.train_data_dir)
    if config.lora:
        options["lora"] = [absolute_lora(lora) for lora in config.lora]
    return options


def changed_options(before: Options, now: Options) -> list[str]:
    """Return the options of `before` that have another value now."""
    return [name for name, value in before.items() if name in now and _read(name, value) != _read(name, now[name])]


def _read(name: str, value: Any) -> Any:
    """Return an option's value, numbers as numbers."""
    try:
        return READERS[name](value) if name in READERS and value is not None else value
    except (ValueError, TypeError, AttributeError):  # of a damaged record
        return value


def other_run(before: Options, now: Options) -> list[str]:
    """Return the changed options that make it another run, with both values. Locations are left out."""
    same = CHANGEABLE | INEXACT | UNREPORTED - {"init_from"}
    if same_hypernetwork(before.get("init_from"), now.get("init_from")):
        same.add("init_from")
    names = [name for name in changed_options(before, now) if name not in same]
    return [f"{name} (was {before[name]}, now {now[name]})" for name in names]


def same_hypernetwork(before: str | None, now: str | None) -> bool:
    """Whether two values of --init_from name the same file, a copy of it, or the place it was moved to."""
    if before == now or not before or not now:
        return before == now
    old, new = Path(str(before)), Path(now)
    if old.is_file() and new.is_file():
        return file_sha256(old) == file_sha256(new)
    return old.resolve() == new.resolve() or (not old.exists() and old.name == new.name)


# --- One-time requests


@dataclasses.dataclass
class Orders:
    """The one-time requests of a command: replace an earlier run, or return to an earlier checkpoint.

    After an interruption, the same command resumes, so the run in the folder does not carry out a request twice.
    """

    overwrite: bool  # whether to delete the run in the folder
    checkpoint: str  # to resume from: "latest", "none", or the name or path of one
    begun_by: dict[str, Any] | None  # the options of the command whose --overwrite began the run
    notes: list[str]

    @property
    def starts_over(self) -> bool:
        """Whether training starts at the first step, whatever the folder holds."""
        return self.overwrite or self.checkpoint == "none"


def read_orders(config: TrainingConfig) -> Orders:
    """Return the one-time requests that the run in the output folder has not carried out yet; keep that run's name.

    Args:
        config: the options as given, before this machine's settings are filled in.
    """
    record, given = read_record(Path(config.output_dir)), dataclasses.asdict(config)
    begun_by = record.get(BEGUN_BY)
    if not isinstance(begun_by, dict):  # an older version recorded only the option
        begun_by = shaping_options(record) if record.get("overwrite") else None
    elif begun_by.get("mixed_precision") is None:
        begun_by["mixed_precision"] = record["mixed_precision"]  # it came from Accelerate
    orders = Orders(config.overwrite, config.resume_from_checkpoint, begun_by, [])
    if config.overwrite and begun_by and _same_training({**record, **begun_by}, given):
        orders.overwrite = False
        hint = "to start over again, add --resume_from_checkpoint none"
        orders.notes.append(f"the run in {config.output_dir} began with this --overwrite and resumes; {hint}")
    if orders.overwrite:
        orders.begun_by, orders.checkpoint = shaping_options(given), "none"
        if record:
            orders.notes.append(f"--overwrite deletes the run that was in {config.output_dir}")
    elif config.resume_from_checkpoint != "latest" and record and _same_training(record, given):
        wanted, name = config.resume_from_checkpoint, Path(config.resume_from_checkpoint).name
        if wanted == record["resume_from_checkpoint"]:
            orders.checkpoint = "latest"
            other = name if name != wanted else Path(config.output_dir, "checkpoints", name)
            hint = "to start over again, add --overwrite" if wanted == "none" else f"to go back again, write {other}"
            what = f"the run has carried out --resume_from_checkpoint {wanted} and resumes from its newest checkpoint"
            orders.notes.append(f"{what}; {hint}")
    if not orders.overwrite and (note := _keep_name(config, record)):
        orders.notes.append(note)
    return orders


def _keep_name(config: TrainingConfig, record: Options) -> str | None:
    """Keep the name of the run in the output folder unless another one is given; return a note if the folder's differs."""
    name, folder = record.get("name"), Path(config.output_dir).resolve().name
    if not isinstance(name, str) or not name or config.name != folder or name == folder:
        return None
    config.name = name
    return f"the run in {config.output_dir} keeps its name, {name}"


def shaping_options(options: Options) -> dict[str, Any]:
    """Return the options that shape what a new run learns, without locations."""
    ends = {"max_train_steps", "num_train_epochs"} if options["lr_scheduler"] != "constant" else set()
    names = {field.name for field in dataclasses.fields(TrainingConfig)} - CHANGEABLE - UNREPORTED - {"name"}
    return {name: options[name] for name in sorted(names | LEARNING | ends)}


def would_repeat(record: Options, config: TrainingConfig) -> bool:
    """Whether a new run with these options would repeat the recorded one, as far as options tell."""
    return _same_training(record, dataclasses.asdict(config))


def _same_training(before: Options, now: Options) -> bool:
    names = changed_options(shaping_options(before), shaping_options(now))
    if now["mixed_precision"] is None:  # Accelerate's setting, whichever it is
        names = [name for name in names if name != "mixed_precision"]
    names_differ = now["name"] not in (before["name"], Path(now["output_dir"]).resolve().name)
    places = [name for name in (*PLACE_OPTIONS, "init_from") if _names_others(name, before[name], now[name])]
    return not names and not names_differ and not places


def _names_others(option: str, before: Any, now: Any) -> bool:
    """Whether an option now names something else, or other repeats of the images."""
    if option == "train_data_dir":
        folders, others = (
            split_folders(value if isinstance(value, list) else str(value or "")) for value in (before, now)
        )
        if [repeats for _, repeats in folders] != [repeats for _, repeats in others]:
            return True
        paths, other_paths = [path for path, _ in folders], [path for path, _ in others]
    elif option == "lora":
        paths, other_paths = (
            [split_lora(str(text))[0] for text in loras] if isinstance(loras, list) else [] for loras in (before, now)
        )
    else:
        paths, other_paths = [before], [now]
    return len(paths) != len(other_paths) or any(map(_names_another, paths, other_paths))


def _names_another(before: Any, now: Any) -> bool:
    """Whether a path names something else now.

    A path that no longer exists counts as moved, and the same relative path from another place as copied.
    """
    if not before or not now:
        return (before or None) != (now or None)
    before, now = str(before), str(now)
    was_moved = os.path.isabs(before) and not os.path.exists(before)
    relative = () if os.path.isabs(now) else Path(os.path.normpath(now)).parts
    was_copied = relative and relative == Path(before).parts[-len(relative) :]
    return not was_moved and not was_copied and os.path.realpath(before) != os.path.realpath(now)
