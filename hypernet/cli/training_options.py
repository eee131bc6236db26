"""From flags and `--config FILE.yaml` to the options of a training; the table of all options."""

import dataclasses
import difflib
import re
import sys
from pathlib import Path

import yaml
from transformers import HfArgumentParser

from hypernet.config import PATH_OPTIONS, TrainingConfig
from hypernet.utils.errors import UserError
from hypernet.stable_diffusion.loras import lora_names

SEVERAL = ("validation_prompt", "optimizer_args", "lora")  # options of several values, which may be repeated
LISTS = (*SEVERAL, "widths", "layer_structure", "dropout_structure", "resolution")
# What a run's name tells of its options beside those that make it another run, and what it does not
TOLD = {"learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "guard"}
TOLD |= {"clip_grad_mode", "max_grad_norm", "max_grad_value", "max_train_steps", "num_train_epochs"}
UNTOLD = {*PATH_OPTIONS, "name"}
CONFIG_HELP = "YAML file with any of these options; flags given beside it win."


class _Parser(HfArgumentParser):
    def add_argument(self, *names, **options):
        if names[0].lstrip("-") in SEVERAL:
            options |= {"action": "extend"}
        if names[0] == "--lora":  # without a value it takes out what a --config says
            options |= {"nargs": "*"}
        return super().add_argument(*names, **options)

    def error(self, message):  # argparse prints its whole usage first
        message = re.sub(r"--(\w+)/--[\w-]+", r"--\1", message)  # it names each option in two spellings
        raise UserError(message.removeprefix("argument "))


def parse_config(arguments=None) -> TrainingConfig:
    """The options from a command line; those of `--config FILE.yaml` come first, so that explicit flags win.

    Raises:
        UserError: for an unknown flag or key (with the nearest one), or a value that cannot work.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(TrainingConfig, description="Train a Stable Diffusion hypernetwork.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help=CONFIG_HELP)
    given, rest = parser.parse_known_args(arguments)
    if rest and not rest[0].startswith("-"):
        raise UserError(f"{rest[0]!r} stands alone; every value follows its --option")
    if rest:
        raise UserError(_unknown(rest[0].partition("=")[0].lstrip("-"), "--{}"))
    if given.config:
        # values of these options on the command line would be added to those of the file
        stated = {name for name in SEVERAL if getattr(given, name) is not None}
        options = {key: value for key, value in read_options(given.config).items() if key not in stated}
        try:
            flags = options_to_flags(options)
        except UserError as error:
            raise UserError(f"--config {given.config}: {error}") from None
        given = parser.parse_args(flags + arguments)
    options = vars(given)
    options.pop("config")
    return TrainingConfig(**options)


def run_label(config: TrainingConfig, arguments=None) -> str:
    """What trackers call the run, if not --run_name: its name and what was given on the command line beside --config.

    That is how runs of one file differ.
    """
    if config.run_name:
        return config.run_name
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    flags = [argument.partition("=")[0].lstrip("-").replace("-", "_") for argument in arguments if argument[:2] == "--"]
    given = [flag.removeprefix("no_") if flag == "no_guard" else flag for flag in flags]
    told = config.changed(name for name in dict.fromkeys(given) if name in config.run_identity() | TOLD)
    told = {key: value for key, value in told.items() if key not in UNTOLD}
    told |= {"lora": lora_names(config.lora)} if "lora" in told else {}
    return ", ".join([config.name, *(f"{key}={value}" for key, value in told.items())])[:120]


def read_options(path, where: str = "--config") -> dict:
    """The entries of a YAML file.

    Raises:
        UserError: if there is no such file, or it holds anything but entries.
    """
    if not Path(path).is_file():
        raise UserError(f"{where} {path}: there is no such file")
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{where} {path}: it cannot be read as YAML (line {line}: {error.problem})") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{where} {path}: it cannot be read as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(entries, dict):
        raise UserError(f"{where} {path}: it must hold lines such as max_train_steps: 1000")
    return entries


def options_to_flags(options: dict) -> list[str]:
    """A YAML file's entries as command-line flags, so that both are converted by the same rules (5e-6 is a number).

    Raises:
        UserError: for an unknown option (with the nearest one), or a list where none is taken.
    """
    fields, flags = {field.name for field in dataclasses.fields(TrainingConfig)}, []
    for key, value in options.items():
        if key not in fields:
            raise UserError(_unknown(str(key), "{}"))
        if value is None:
            continue
        if isinstance(value, list) and key not in LISTS:
            raise UserError(f"{key}: [...] is a list in YAML; put the value in quotes")
        if isinstance(value, list) and key in SEVERAL:
            flags += [f"--{key}", *map(str, value)]
        else:
            flags.append(f"--{key}={','.join(map(str, value)) if isinstance(value, list) else value}")
    return flags


def _unknown(word, form):
    names = [field.name for field in dataclasses.fields(TrainingConfig)] + ["config"]
    short = {"vae": "pretrained_vae_model_name_or_path", "model": "pretrained_model_name_or_path"}
    nearest = [short[word]] if word in short else difflib.get_close_matches(word.replace("-", "_"), names, 1, 0.5)
    hint = f"did you mean {form.format(nearest[0])}?" if nearest else "examples/docs/options.md lists all"
    return f"unknown option {form.format(word)}; {hint}"


def options_table() -> str:
    """All options as a Markdown table, for examples/docs/options.md."""
    rows = ["| option | default | meaning |", "| --- | --- | --- |", f"| `--config` |  | {CONFIG_HELP} |"]
    for field in dataclasses.fields(TrainingConfig):
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `--{field.name}` | {default} | {field.metadata['help']} |")
    return "\n".join(rows)
