"""What values of the options can work, alone and together; whatever cannot is told in one line."""

import re
from pathlib import Path

from hypernet.data.captions import check_word_regex
from hypernet.utils.errors import UserError
from hypernet.modeling.hypernetwork import check_structure
from hypernet.data.image_io import check_color
from hypernet.stable_diffusion.quantization import QUANTIZATIONS, check_quantize
from hypernet.training.rates import LR_SCHEDULERS, learning_rate_function
from hypernet.data.buckets import aspect_buckets

TRACKERS = ("wandb", "tensorboard", "all", "none")
PRECISIONS = ("no", "fp16", "bf16")
CROPS = ("center", "random", "none")
LATENT_SAMPLINGS = ("deterministic", "once", "random")
CLIP_GRAD_MODES = ("norm", "value", "none")
ON_SAVE_ERROR = ("continue", "stop")


def check_options(config):
    """Check the options of a `TrainingConfig`.

    Raises:
        UserError: for a value that cannot work, or one that would do nothing beside the others.
    """
    _require(config, "pretrained_model_name_or_path", "the model, such as stable-diffusion-v1-5/stable-diffusion-v1-5")
    _ = config.model_source  # it checks itself
    _check_data(config)
    _check_hypernetwork(config)
    _check_loop(config)
    _check_held_out(config)
    _check_output(config)


def _check_data(config):
    if not config.dataset_name:
        _require(config, "train_data_dir", "a folder of images (or --dataset_name, a data set)")
    _choose(config, "crop", CROPS)
    _choose(config, "latent_sampling", LATENT_SAMPLINGS)
    _at_least(config, 1, "crop_variants", "caption_variants")
    _at_least(config, 0, "keep_tags")
    _probability(config, "tag_dropout", "caption_dropout")
    _check("resolution", lambda: config.size)
    _check("alpha_background", lambda: check_color(config.alpha_background))
    _check("filename_word_regex", lambda: check_word_regex(config.filename_word_regex or ""))
    if config.aspect_buckets:
        _check("resolution", lambda: aspect_buckets(*config.size))
    draws_tags = config.shuffle_tags or config.tag_dropout > 0
    both = 'name a folder or a data set, not both (--train_data_dir "" takes out what a --config says)'
    _refuse_if(config, config.dataset_name, "train_data_dir", both)
    _refuse_if(config, not config.dataset_name, "dataset_config_name", "it belongs to --dataset_name")
    _refuse_if(config, not config.dataset_name, "image_column", "it belongs to --dataset_name")
    _refuse_if(config, config.dataset_name, "filename_word_regex", "it belongs to --train_data_dir")
    _refuse_if(config, not config.filename_word_regex, "filename_join_string", "it belongs to --filename_word_regex")
    _refuse_if(config, config.crop != "random", "crop_variants", "it belongs to --crop random")
    _refuse_if(config, not config.aspect_buckets, "bucket_upscale", "it belongs to --aspect_buckets")
    _refuse_if(config, config.aspect_buckets, "varsize", "choose it or --aspect_buckets")
    for option in ("keep_tags", "caption_variants"):
        _refuse_if(config, not draws_tags, option, "it belongs to --shuffle_tags or --tag_dropout")


def _check_hypernetwork(config):
    if set(config.name) & set('<>:"/\\|?*') or config.name in (".", ".."):
        raise UserError(f'--name {config.name}: it becomes a file name, so none of < > : " / \\ | ? *')
    _check("template", lambda: config.templates)
    without_words = not any("[filewords]" in template for template in config.templates)
    for option in ("shuffle_tags", "tag_dropout"):
        _refuse_if(config, without_words, option, f"--template {config.template} has no [filewords]")
    for option in ("layer_structure", "dropout_structure", "widths"):
        _check(option, lambda option=option: getattr(config, f"{option}_numbers"))
    _check(None, lambda: check_structure(**config.structure()))


def _check_loop(config):
    _choose(config, "mixed_precision", (*PRECISIONS, None))
    _choose(config, "quantize", (*QUANTIZATIONS, None))
    check_quantize(config.quantize)
    _choose(config, "clip_grad_mode", CLIP_GRAD_MODES)
    _choose(config, "lr_scheduler", LR_SCHEDULERS)
    _at_least(config, 1, "max_train_steps", "num_train_epochs", "train_batch_size", "gradient_accumulation_steps")
    _at_least(config, 1, "lr_num_cycles")
    _at_least(
        config, 0, "adam_weight_decay", "adam_epsilon", "lr_warmup_steps", "lr_power", "noise_offset", "snr_gamma"
    )
    _at_least(config, 0, "seed")
    _below_one(config, "adam_beta1", "adam_beta2", "ema_decay")
    if config.seed >= 2**32:
        raise UserError(f"--seed {config.seed}: it must be below 2**32")
    if config.snr_gamma == 0:
        raise UserError("--snr_gamma 0.0: it would take all weight from the loss; 5 is usual")
    for option in ("learning_rate", "max_grad_norm", "max_grad_value"):
        _check(option, lambda option=option: config.schedule_of(option))
    if not any(value for value, _ in config.schedule.pieces):
        raise UserError(f"--learning_rate {config.learning_rate}: with a rate of 0 nothing is learnt")
    of = {"lr_num_cycles": ("cosine_with_restarts",), "lr_power": ("polynomial",)}
    of["lr_warmup_steps"] = [name for name in LR_SCHEDULERS if name != "constant"]
    for option, schedulers in of.items():
        needs = f"it belongs to --lr_scheduler {', '.join(schedulers)}"
        _refuse_if(config, config.lr_scheduler not in schedulers, option, needs)
    if config.num_train_epochs is None and config.lr_warmup_steps >= config.max_train_steps:
        problem = f"the rate would grow beyond the training's end, {config.max_train_steps} steps"
        raise UserError(f"--lr_warmup_steps {config.lr_warmup_steps}: {problem}")
    if config.lr_scheduler != "constant":
        if len(config.schedule.pieces) > 1 or ":" in config.learning_rate:
            problem = f"it starts from one rate, and --learning_rate is {config.learning_rate}; write a single number"
            raise UserError(f"--lr_scheduler {config.lr_scheduler}: {problem}")
        _check("lr_scheduler", lambda: learning_rate_function(config))
    _refuse_if(config, config.init_from, "num_train_epochs", "beside --init_from name --max_train_steps")
    _refuse_if(config, config.clip_grad_mode != "norm", "max_grad_norm", "it belongs to --clip_grad_mode norm")
    _refuse_if(config, config.clip_grad_mode != "value", "max_grad_value", "it belongs to --clip_grad_mode value")


def _check_held_out(config):
    if not 0 <= config.validation_split < 1:
        raise UserError(f"--validation_split {config.validation_split}: a share, from 0 to below 1, such as 0.1")
    _refuse_if(config, config.validation_data_dir, "validation_split", "choose it or --validation_data_dir")
    reason = "it belongs to --validation_split or --validation_data_dir"
    if config.validation_data_dir and config.train_data_dir:
        if Path(config.validation_data_dir).resolve().is_relative_to(Path(config.train_data_dir).resolve()):
            problem = "it lies in --train_data_dir, all of which is trained on; move it out, or use --validation_split"
            raise UserError(f"--validation_data_dir {config.validation_data_dir}: {problem}")
    _refuse_if(config, not config.holds_out, "validation_loss_steps", reason)


def _check_output(config):
    _choose(config, "report_to", TRACKERS)
    for prompt in config.validation_prompt or []:
        for tag in re.findall(r"<(?:lora|hypernet):[^>]*>", prompt):
            problem = (
                f"{tag} would be words here; LoRAs go underneath with --lora, and the hypernetwork is on it anyway"
            )
            raise UserError(f"--validation_prompt {prompt}: {problem}")
    _choose(config, "on_save_error", ON_SAVE_ERROR)
    _at_least(config, 1, "checkpointing_steps", "checkpoints_total_limit", "validation_steps", "num_validation_images")
    _at_least(config, 1, "validation_inference_steps", "validation_loss_steps", "logging_steps")
    for option in ("train_data_dir", "validation_data_dir"):
        output, pictures = Path(config.output_dir).resolve(), getattr(config, option)
        if pictures and output.is_relative_to(Path(pictures).resolve()):
            raise UserError(f"--output_dir {config.output_dir}: it lies in --{option}; name a folder outside")
    _refuse_if(config, config.report_to not in ("wandb", "all"), "log_artifact", "it belongs to --report_to wandb")


def _refuse_if(config, forbidden, option, reason):
    """Refuse an option that would do nothing here, unless it has its default."""
    if forbidden:
        for name, value in config.changed([option]).items():
            raise UserError(f"--{name}{'' if value is True else f' {value}'}: {reason}")


def _probability(config, *options):
    for option in options:
        if not 0 <= getattr(config, option) <= 1:
            raise UserError(f"--{option} {getattr(config, option)}: a probability is from 0 to 1")


def _require(config, option, meaning):
    if not getattr(config, option):
        raise UserError(f"--{option} is missing: {meaning}")


def _choose(config, option, choices):
    if getattr(config, option) not in choices:
        raise UserError(f"--{option} {getattr(config, option)}: choose one of {', '.join(filter(None, choices))}")


def _at_least(config, lowest, *options):
    for option in options:
        value = getattr(config, option)
        if value is not None and not value >= lowest:
            raise UserError(f"--{option} {value}: it must be {lowest} or more")


def _below_one(config, *options):
    for option in options:
        value = getattr(config, option)
        if value is not None and not 0 <= value < 1:
            raise UserError(f"--{option} {value}: it must be from 0 to below 1")


def _check(option, build):
    try:
        build()
    except ValueError as error:
        raise UserError(f"--{option} {error}" if option else f"--{error}") from None
