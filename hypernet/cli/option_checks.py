"""Check the training options, alone and together. Imports no torch, so that mistakes are reported at once."""

import ast
import difflib
import importlib.util
import re
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypernet.config import PATH_OPTIONS, LRScheduler, TrainingConfig, parse_numbers
from hypernet.data.buckets import aspect_buckets
from hypernet.data.captions import check_word_regex
from hypernet.data.prompts import read_templates
from hypernet.modeling.structure import ACTIVATIONS, LAYER_NORM_INITS, WEIGHT_INITS, check_structure, find_word
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.lr_schedule import ScheduleError, parse_schedule
from hypernet.training.wandb_rules import check_wandb_settings
from hypernet.utils.errors import UserError, one_line, quoted_if_needed
from hypernet.utils.user_paths import name_problem, path_problem

OPTIMIZER_PACKAGES = {"torch": "optim", "bitsandbytes": "optim", "prodigyopt": ""}
SCHEDULE_EXAMPLES = {  # option -> what to write instead of a malformed value
    "learning_rate": '"1e-5" or "5e-6:12000, 5e-7:30000"',
    "max_grad_norm": '"0.5" or "1.0:1000, 0.5:30000"',
    "max_grad_value": '"0.05" or "0.1:1000, 0.05:30000"',
}
POLYNOMIAL_END = 1e-7  # where diffusers' polynomial scheduler ends


def check_options(config: TrainingConfig) -> TrainingConfig:
    """Fill in what follows from other options, then check all of them.

    Returns:
        The same config, with `name`, and the optimizer by its exact name.

    Raises:
        UserError: for an invalid value, or one that would have no effect in combination with the others.
    """
    _check_paths(config)
    config.name = config.name or _name_of_folder(config)
    config.train_data_dir, config.dataset_name = config.train_data_dir or None, config.dataset_name or None
    config.optimizer = _optimizer_name(config)
    config.activation = find_word(config.activation, ACTIVATIONS)
    config.weight_init = find_word(config.weight_init, WEIGHT_INITS)
    config.layer_norm_init = find_word(config.layer_norm_init, LAYER_NORM_INITS)
    for option in ("layer_structure", "dropout_structure", "widths"):
        setattr(config, option, _without_brackets(getattr(config, option)))
    _require(
        config, "pretrained_model_name_or_path", "the base model, such as stable-diffusion-v1-5/stable-diffusion-v1-5"
    )
    ModelSource.from_config(config)  # checks its own options
    _check_data(config)
    _check_hypernetwork(config)
    _check_training(config)
    _check_schedules(config)
    _check_validation(config)
    _check_output(config)
    return config


def _check_paths(config: TrainingConfig) -> None:
    """Check that the paths can exist; looking up an impossible one fails with an unclear error."""
    for option in (*PATH_OPTIONS, "output_dir", "cache_dir", "resume_from_checkpoint", "lora"):
        value = getattr(config, option)
        for path in value if isinstance(value, list) else [value or ""]:
            if problem := path_problem(path):
                raise UserError(f"--{option} {one_line(path)}: {problem}")
    if not config.output_dir:
        raise UserError("--output_dir is empty: name a folder for everything the run writes")


def _name_of_folder(config: TrainingConfig) -> str:
    """Return the output folder's name, which is the hypernetwork's unless --name is given."""
    name = Path(config.output_dir).resolve().name
    if problem := name_problem(name):
        given = f"--output_dir {quoted_if_needed(config.output_dir)}"
        hint = "write the path with / instead of \\" if "\\" in name else "name another folder"
        raise UserError(f"{given}: the hypernetwork is named after the folder, but {problem}; {hint}, or add --name")
    return name


def _without_brackets(numbers: str | None) -> str | None:
    """Return "1,2,1" for "[1,2,1]", as the WebUI prints it."""
    match = re.fullmatch(r"\s*[\[(](.*)[\])]\s*", numbers or "")
    return match[1] if match else numbers


def _check_data(config: TrainingConfig) -> None:
    if not config.dataset_name:
        _require(config, "train_data_dir", "a folder of images (or --dataset_name, a dataset)")
    _at_least(config, 1, "crop_variants", "caption_variants")
    _at_least(config, 0, "keep_tags")
    _probability(config, "tag_dropout", "caption_dropout")
    _check("resolution", lambda: config.size)
    _check("filename_word_regex", lambda: check_word_regex(config.filename_word_regex or ""))
    if config.changed(["alpha_background"]):
        from hypernet.data.image_io import check_color  # loads numpy and Pillow

        _check("alpha_background", lambda: check_color(config.alpha_background))
    if config.aspect_buckets:
        _check("resolution", lambda: aspect_buckets(*config.size))
    samples_tags = config.shuffle_tags or config.tag_dropout > 0
    both = 'name a folder or a dataset, not both (--train_data_dir "" cancels the one in --config)'
    _refuse_if(config, config.dataset_name, "train_data_dir", both)
    _refuse_if(config, not config.dataset_name, "dataset_config_name", "it requires --dataset_name")
    _refuse_if(config, not config.dataset_name, "image_column", "it requires --dataset_name")
    _refuse_if(config, config.dataset_name, "filename_word_regex", "it requires --train_data_dir")
    _refuse_if(config, not config.filename_word_regex, "filename_join_string", "it requires --filename_word_regex")
    _refuse_if(config, config.crop != "random", "crop_variants", "it requires --crop random")
    _refuse_if(config, not config.aspect_buckets, "bucket_upscale", "it requires --aspect_buckets")
    _refuse_if(config, config.aspect_buckets, "varsize", "choose it or --aspect_buckets")
    for option in ("keep_tags", "caption_variants"):
        _refuse_if(config, not samples_tags, option, "it requires --shuffle_tags or --tag_dropout")


def _check_hypernetwork(config: TrainingConfig) -> None:
    if problem := name_problem(str(config.name)):
        raise UserError(f"--name {quoted_if_needed(str(config.name))}: {problem}")
    _check("template", lambda: read_templates(config.template))
    no_caption = not any("[filewords]" in template for template in read_templates(config.template))
    for option in ("shuffle_tags", "tag_dropout"):
        _refuse_if(config, no_caption, option, f"--template {config.template} has no [filewords]")
    for option in ("layer_structure", "dropout_structure", "widths"):
        text = getattr(config, option)
        if text is not None:
            _check(option, partial(parse_numbers, text))
    _check(None, lambda: check_structure(**config.structure()))


def _check_training(config: TrainingConfig) -> None:
    if config.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantize {config.quantize}: it needs bitsandbytes; pip install bitsandbytes")
    _at_least(config, 1, "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps")
    _at_least(config, 0, "adam_weight_decay", "adam_epsilon", "noise_offset", "snr_gamma", "seed")
    _below_one(config, "adam_beta1", "adam_beta2", "ema_decay")
    if config.seed >= 2**32:
        raise UserError(f"--seed {config.seed}: it must be below 2**32")
    if config.snr_gamma == 0:
        raise UserError("--snr_gamma 0.0: every loss weight would be 0; 5 is usual")
    _refuse_if(config, config.init_from, "num_train_epochs", "with --init_from use --max_train_steps")
    _refuse_if(config, config.clip_grad_mode != "norm", "max_grad_norm", "it requires --clip_grad_mode norm")
    _refuse_if(config, config.clip_grad_mode != "value", "max_grad_value", "it requires --clip_grad_mode value")


def _check_schedules(config: TrainingConfig) -> None:
    """Check the learning rate, its scheduler and the clipping thresholds."""
    _at_least(config, 1, "lr_num_cycles")
    _at_least(config, 0, "lr_warmup_steps", "lr_power")
    for option, examples in SCHEDULE_EXAMPLES.items():
        try:
            parse_schedule(getattr(config, option), config.max_train_steps)
        except ScheduleError as error:
            raise UserError(f"--{option} {error}; write {examples}") from None
    schedule = parse_schedule(config.learning_rate, config.max_train_steps)
    if not any(value for value, _ in schedule.pieces):
        raise UserError(f"--learning_rate {config.learning_rate}: nothing is learned at a learning rate of 0")
    schedulers = {"lr_num_cycles": ["cosine_with_restarts"], "lr_power": ["polynomial"]}
    schedulers["lr_warmup_steps"] = [name for name in typing.get_args(LRScheduler) if name != "constant"]
    for option, names in schedulers.items():
        _refuse_if(config, config.lr_scheduler not in names, option, f"it requires --lr_scheduler {', '.join(names)}")
    if config.num_train_epochs is None and config.lr_warmup_steps >= config.max_train_steps:
        problem = f"warmup would not end before the training does, after {config.max_train_steps} steps"
        raise UserError(f"--lr_warmup_steps {config.lr_warmup_steps}: {problem}")
    if config.lr_scheduler == "constant":
        return
    if len(schedule.pieces) > 1 or ":" in config.learning_rate:
        problem = f"it needs a single learning rate, and --learning_rate is {config.learning_rate}"
        raise UserError(f"--lr_scheduler {config.lr_scheduler}: {problem}")
    if config.lr_scheduler == "polynomial" and schedule.at(0) <= POLYNOMIAL_END:
        problem = f"it ends at {POLYNOMIAL_END:g}, so --learning_rate must be larger"
        raise UserError(f"--lr_scheduler polynomial: {problem}")


def _check_validation(config: TrainingConfig) -> None:
    if not 0 <= config.validation_split < 1:
        raise UserError(
            f"--validation_split {config.validation_split}: a fraction, at least 0 and below 1, such as 0.1"
        )
    _refuse_if(config, config.validation_data_dir, "validation_split", "choose it or --validation_data_dir")
    if config.validation_data_dir and config.train_data_dir:
        if Path(config.validation_data_dir).resolve().is_relative_to(Path(config.train_data_dir).resolve()):
            problem = "it lies in --train_data_dir, all of which is trained on; move it out, or use --validation_split"
            raise UserError(f"--validation_data_dir {config.validation_data_dir}: {problem}")
    reason = "it requires --validation_split or --validation_data_dir"
    _refuse_if(config, not config.has_validation, "validation_loss_steps", reason)


def _check_output(config: TrainingConfig) -> None:
    for prompt in config.validation_prompt or []:
        for tag in re.findall(r"<(?:lora|hypernet):[^>]*>", prompt):
            problem = f"{tag} would be read as words; use --lora for LoRAs, and the hypernetwork is always on"
            raise UserError(f"--validation_prompt {prompt}: {problem}")
    _at_least(config, 1, "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images")
    _at_least(config, 1, "validation_inference_steps", "validation_loss_steps", "logging_steps")
    for option in ("train_data_dir", "validation_data_dir"):
        output, images = Path(config.output_dir).resolve(), getattr(config, option)
        if images and output.is_relative_to(Path(images).resolve()):
            raise UserError(f"--output_dir {config.output_dir}: it lies in --{option}; name a folder outside")
    uses_wandb = config.report_to in ("wandb", "all")
    _refuse_if(config, not uses_wandb, "log_artifact", "it requires --report_to wandb")
    if uses_wandb:
        artifact = config.name if config.log_artifact else None
        check_wandb_settings(config.tracker_project_name, config.run_name, artifact)


# --- Optimizers by name


def _optimizer_name(config: TrainingConfig) -> str:
    """Return the exact class name of --optimizer; --use_8bit_adam stands for AdamW8bit.

    Raises:
        UserError: if no installed package has it.
    """
    name = config.optimizer
    if config.use_8bit_adam:
        if name.lower() not in ("adamw", "adamw8bit"):
            raise UserError(f"--use_8bit_adam: it stands for --optimizer AdamW8bit, but --optimizer is {name}")
        name = "AdamW8bit"
    names: dict[str, str] = {}
    for package, module in OPTIMIZER_PACKAGES.items():
        names = {found.lower(): found for found in _class_names(package, module)} | names  # torch comes first
    if name.lower() in names:
        return names[name.lower()]
    if name.lower() == "prodigy":
        raise UserError("--optimizer Prodigy: it is not installed; pip install prodigyopt")
    nearest = difflib.get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {names[nearest[0]]}?" if nearest else "use one of torch.optim or bitsandbytes"
    raise UserError(f"--optimizer {name}: there is no such optimizer; {hint}")


def _class_names(package: str, module: str) -> list[str]:
    """List the classes that a package's __init__.py imports, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0], module, "__init__.py").read_text(encoding="utf-8")
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in imported for alias in node.names]
    return [name for name in names if name[0].isupper() and name != "Optimizer" and not name.startswith("Global")]


# --- Kinds of checks


def _refuse_if(config: TrainingConfig, forbidden: object, option: str, reason: str) -> None:
    """If `forbidden`, refuse an option that does not have its default value."""
    if forbidden:
        for name, value in config.changed([option]).items():
            raise UserError(f"--{name}{'' if value is True else f' {value}'}: {reason}")


def _probability(config: TrainingConfig, *options: str) -> None:
    for option in options:
        if not 0 <= getattr(config, option) <= 1:
            raise UserError(f"--{option} {getattr(config, option)}: a probability is between 0 and 1")


def _require(config: TrainingConfig, option: str, meaning: str) -> None:
    if not getattr(config, option):
        raise UserError(f"--{option} is missing: {meaning}")


def _at_least(config: TrainingConfig, lowest: int, *options: str) -> None:
    for option in options:
        value = getattr(config, option)
        if value is not None and not value >= lowest:
            raise UserError(f"--{option} {value}: it must be {lowest} or more")


def _below_one(config: TrainingConfig, *options: str) -> None:
    for option in options:
        value = getattr(config, option)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"--{option} {value}: it must be at least 0 and below 1")


def _check(option: str | None, build: Callable[[], object]) -> None:
    """Turn a ValueError of `build` into a UserError that names the option."""
    try:
        build()
    except ValueError as error:
        raise UserError(f"--{option} {error}" if option else f"--{error}") from None
