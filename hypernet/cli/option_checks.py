"""Check the training options, alone and together. Imports no torch, so that mistakes are reported at once."""

import importlib.util
import re
import typing
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hypernet.cli.optimizer_names import optimizer_name
from hypernet.cli.path_checks import check_paths, name_of_folder
from hypernet.cli.preview_checks import check_previews
from hypernet.cli.schedule_defaults import SCHEDULE_EXAMPLES
from hypernet.config import LRScheduler, TrainingConfig, parse_numbers
from hypernet.data.buckets import aspect_buckets
from hypernet.data.captions import check_word_regex
from hypernet.data.folder_repeats import check_folders, folder_paths, plain_folders
from hypernet.data.prompts import read_prior_prompts, read_templates
from hypernet.modeling.structure import (
    ACTIVATIONS,
    LAYER_NORM_INITS,
    SAME_ACTIVATIONS,
    WEIGHT_INITS,
    check_structure,
    find_word,
)
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.lr_schedule import (
    POLYNOMIAL_END,
    ScheduleError,
    auto_factor,
    learning_rate_schedule,
    parse_schedule,
)
from hypernet.training.optimizer_rates import FINDS_ITS_OWN
from hypernet.training.wandb_rules import check_wandb_settings
from hypernet.utils.errors import UserError, quoted_if_needed
from hypernet.utils.user_paths import name_problem

USUAL_DROPOUT = "0.3"  # what the WebUI's checkbox "Use dropout" stood for
MOST_PRIOR_WEIGHT = 100
DROPOUT_WORDS = dict.fromkeys(("none", "false", "no", "off"), "0")  # in lower case without separators -> the dropout
DROPOUT_WORDS |= dict.fromkeys(("usedropout", "true", "yes", "on"), USUAL_DROPOUT)


def check_options(config: TrainingConfig) -> TrainingConfig:
    """Fill in what follows from other options, then check all of them.

    Returns:
        The same config, with `name`, and the optimizer by its exact name.

    Raises:
        UserError: for an invalid value, or one that would have no effect in combination with the others.
    """
    check_paths(config)
    config.name = config.name or name_of_folder(config)
    config.train_data_dir, config.dataset_name = plain_folders(config.train_data_dir), config.dataset_name or None
    _settle_flips(config)
    config.optimizer = optimizer_name(config)
    config.activation = find_word(config.activation, ACTIVATIONS, SAME_ACTIVATIONS)
    config.weight_init = find_word(config.weight_init, WEIGHT_INITS)
    config.layer_norm_init = find_word(config.layer_norm_init, LAYER_NORM_INITS)
    for option in ("layer_structure", "dropout_structure", "widths"):
        setattr(config, option, _without_brackets(getattr(config, option)))
    config.dropout_structure = _dropout_structure(config)
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


def _without_brackets(numbers: str | None) -> str | None:
    """Return "1,2,1" for "[1,2,1]", as the WebUI prints it, or "('1','2','1',)"."""
    match = re.fullmatch(r"\s*[\[(](.*?),?\s*[\])]\s*", numbers or "")
    return re.sub("[\"']", "", match[1]) if match else numbers


def _settle_flips(config: TrainingConfig) -> None:
    """Replace --flip_p 0.5 with --random_flip, and --flip_p 0 with neither, which are the same run."""
    if config.flip_p is None:
        return
    _probability(config, "flip_p")
    if config.random_flip and config.flip_p != 0.5:
        hint = "choose one (--random_flip false cancels the one in --config)"
        raise UserError(f"--flip_p {config.flip_p}: --random_flip stands for 0.5; {hint}")
    if config.flip_p in (0, 0.5):
        config.random_flip, config.flip_p = config.flip_p == 0.5, None


def _dropout_structure(config: TrainingConfig) -> str | None:
    """Return the dropout structure that one number, `true` or `none` means; any other text unchanged.

    One number is the dropout of every layer but the last. The WebUI's checkbox "Use dropout" stands for 0.3.
    """
    text = find_word(config.dropout_structure or "none", ("0", USUAL_DROPOUT), DROPOUT_WORDS)
    try:
        dropout, layers = float(text), len(parse_numbers(config.layer_structure))
    except ValueError:
        return config.dropout_structure
    return ",".join(["0", *[text.strip()] * (layers - 2), "0"]) if dropout else None


def _check_data(config: TrainingConfig) -> None:
    if not config.dataset_name:
        _require(config, "train_data_dir", "a folder of images (or --dataset_name, a dataset)")
    check_folders(config.train_data_dir)
    _at_least(config, 1, "crop_variants", "caption_variants", "repeats")
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
    if not config.tag_separator:
        raise UserError('--tag_separator is empty; write " " for tags separated by spaces')
    for option in ("keep_tags", "caption_variants", "tag_separator"):
        _refuse_if(config, not samples_tags, option, "it requires --shuffle_tags or --tag_dropout")


def _check_hypernetwork(config: TrainingConfig) -> None:
    if problem := name_problem(str(config.name)):
        raise UserError(f"--name {quoted_if_needed(str(config.name))}: {problem}")
    _check("template", lambda: read_templates(config.template))
    no_caption = not any("[filewords]" in template for template in read_templates(config.template))
    if config.dataset_name and any("[folder]" in template for template in read_templates(config.template)):
        raise UserError(f"--template {config.template}: [folder] requires --train_data_dir")
    for option in ("shuffle_tags", "tag_dropout"):
        _refuse_if(config, no_caption, option, f"--template {config.template} has no [filewords]")
    for option in ("layer_structure", "dropout_structure", "widths"):
        text = getattr(config, option)
        if text is not None:
            _check(option, partial(parse_numbers, text))
    activated = "with --skip_connection every layer has the activation"
    _refuse_if(config, config.skip_connection, "activate_output", activated)
    _check(None, lambda: check_structure(**config.structure()))


def _check_training(config: TrainingConfig) -> None:
    if config.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"--quantize {config.quantize}: it needs bitsandbytes; pip install bitsandbytes")
    _at_least(config, 1, "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps")
    _at_least(config, 0, "adam_weight_decay", "adam_epsilon", "noise_offset", "snr_gamma", "seed", "prior_weight")
    _below_one(config, "adam_beta1", "adam_beta2", "ema_decay")
    if config.seed >= 2**32:
        raise UserError(f"--seed {config.seed}: it must be below 2**32")
    if config.snr_gamma == 0:
        raise UserError("--snr_gamma 0.0: every loss weight would be 0; 5 is usual")
    if config.prior_weight > MOST_PRIOR_WEIGHT:
        hint = f"it must be at most {MOST_PRIOR_WEIGHT}; try 0.1"
        raise UserError(f"--prior_weight {config.prior_weight:g}: {hint}")
    _refuse_if(config, not config.prior_weight, "prior_prompts", "it requires --prior_weight, such as 0.1")
    if config.prior_prompts:
        read_prior_prompts(config.prior_prompts)
    _refuse_if(config, config.init_from, "num_train_epochs", "with --init_from use --max_train_steps")
    _refuse_if(config, config.clip_grad_mode != "norm", "max_grad_norm", "it requires --clip_grad_mode norm")
    _refuse_if(config, config.clip_grad_mode != "value", "max_grad_value", "it requires --clip_grad_mode value")


def _check_schedules(config: TrainingConfig) -> None:
    """Check the learning rate, its scheduler and the clipping thresholds."""
    _at_least(config, 1, "lr_num_cycles")
    _at_least(config, 0, "lr_warmup_steps", "lr_power")
    for option, examples in SCHEDULE_EXAMPLES.items():
        try:
            if option != "learning_rate" or auto_factor(config.learning_rate) is None:
                parse_schedule(getattr(config, option), config.max_train_steps)
        except ScheduleError as error:
            raise UserError(f"--{option} {error}; write {examples}") from None
    schedule, is_auto = learning_rate_schedule(config), auto_factor(config.learning_rate) is not None
    if is_auto and config.optimizer in FINDS_ITS_OWN:
        problem = f"{config.optimizer} sets its own step size; write --learning_rate 1"
        raise UserError(f"--learning_rate {config.learning_rate}: {problem}")
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
    if len(schedule.pieces) > 1 or (":" in config.learning_rate and not is_auto):
        problem = f"it needs a single learning rate, and --learning_rate is {config.learning_rate}"
        raise UserError(f"--lr_scheduler {config.lr_scheduler}: {problem}")
    if config.lr_scheduler == "polynomial" and not is_auto and schedule.at(0) <= POLYNOMIAL_END:
        problem = f"it ends at {POLYNOMIAL_END:g}, so --learning_rate must be larger"
        raise UserError(f"--lr_scheduler polynomial: {problem}")


def _check_validation(config: TrainingConfig) -> None:
    if not 0 <= config.validation_split < 1:
        raise UserError(
            f"--validation_split {config.validation_split}: a fraction, at least 0 and below 1, such as 0.1"
        )
    if not 0 <= config.min_prompt_fidelity <= 1:
        raise UserError(f"--min_prompt_fidelity {config.min_prompt_fidelity}: at least 0 and at most 1, such as 0.6")
    _refuse_if(config, config.validation_data_dir, "validation_split", "choose it or --validation_data_dir")
    if config.validation_data_dir and config.train_data_dir:
        folder = Path(config.validation_data_dir).resolve()
        if any(folder.is_relative_to(images.resolve()) for images in folder_paths(config.train_data_dir)):
            problem = "it lies in --train_data_dir, all of which is trained on; move it out, or use --validation_split"
            raise UserError(f"--validation_data_dir {config.validation_data_dir}: {problem}")
    reason = "it requires --validation_split or --validation_data_dir"
    _refuse_if(config, not config.has_validation, "validation_loss_steps", reason)


def _check_output(config: TrainingConfig) -> None:
    check_previews(config)
    _at_least(config, 1, "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images")
    _at_least(config, 1, "validation_loss_steps", "logging_steps")
    folders = {"validation_data_dir": [Path(path) for path in [config.validation_data_dir] if path]}
    for option, paths in ({"train_data_dir": folder_paths(config.train_data_dir)} | folders).items():
        if any(Path(config.output_dir).resolve().is_relative_to(images.resolve()) for images in paths):
            raise UserError(f"--output_dir {config.output_dir}: it lies in --{option}; name a folder outside")
    uses_wandb = config.report_to in ("wandb", "all")
    _refuse_if(config, not uses_wandb, "log_artifact", "it requires --report_to wandb")
    if uses_wandb:
        artifact = config.name if config.log_artifact else None
        check_wandb_settings(config.tracker_project_name, config.run_name, artifact)


# --- Kinds of checks


def _refuse_if(config: TrainingConfig, forbidden: object, option: str, reason: str) -> None:
    """If `forbidden`, refuse an option that does not have its default value."""
    if forbidden:
        for name, value in config.changed([option]).items():
            text = " ".join(value) if isinstance(value, list) else value
            raise UserError(f"--{name}{'' if value is True else f' {text}'}: {reason}")


def _probability(config: TrainingConfig, *options: str) -> None:
    for option in options:
        if not 0 <= (value := getattr(config, option)) <= 1:
            hint = f"; for {value:g}%, write {value / 100:g}" if 1 < value <= 100 else ""
            raise UserError(f"--{option} {value}: a probability is between 0 and 1{hint}")


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
