"""Turn flags and `--config FILE.yaml` into a `TrainingConfig`; write `--help` and the table of all options."""

import argparse
import dataclasses
import functools
import os
import shutil
import sys
import types
import typing
from pathlib import Path

import yaml

from hypernet.cli.number_types import use_plain_numbers
from hypernet.cli.option_checks import check_options
from hypernet.cli.parse_errors import check_swallowed, explain_missing
from hypernet.cli.schedule_defaults import default_scheduler, default_steps
from hypernet.cli.unknown_options import explain_rest, explain_unknown
from hypernet.config import CHANGEABLE, GROUPS, PATH_OPTIONS, TrainingConfig
from hypernet.modeling.structure import find_word
from hypernet.stable_diffusion.loras import lora_names
from hypernet.utils.errors import UserError, reason
from hypernet.utils.reading import read_text
from hypernet.utils.user_paths import expand_home
from hypernet.utils.yaml_text import OptionsError, TextLoader

REPEATABLE = ("validation_prompt", "optimizer_args", "lora")  # options that take several values
SEVERAL = ("train_data_dir",)  # takes several values at once; if it is repeated, the last counts
LISTS = (
    *REPEATABLE,
    *SEVERAL,
    "widths",
    "layer_structure",
    "dropout_structure",
    "resolution",
    "validation_resolution",
)  # may be YAML lists
# Other programs' words for a choice, in lower case without separators: the WebUI calls clipping "disabled", OneTrainer
# writes FLOAT_16, BFLOAT_16 and NFLOAT_4
SAME_CHOICES = dict.fromkeys(("disabled", "off", "no", "false"), "none")
SAME_CHOICES |= dict.fromkeys(("float32", "float", "fp32"), "no")
SAME_CHOICES |= {"float16": "fp16", "half": "fp16", "bfloat16": "bf16", "nfloat4": "nf4"}
# A run's label shows these besides the options that make it a different run, except for the unlabeled ones
LABELED = {"learning_rate", "lr_scheduler", "lr_warmup_steps", "lr_num_cycles", "lr_power", "guard"}
LABELED |= {"clip_grad_mode", "max_grad_norm", "max_grad_value", "max_train_steps", "num_train_epochs"}
UNLABELED = {*PATH_OPTIONS, "name"}
MAX_YAML = 2**17  # bytes; a file with every option and its help text has 10 kB, and PyYAML reads 0.1 MB per second
PRESETS = Path(__file__).parents[2] / "examples" / "configs"
CONFIG_HELP = "YAML file with any of these options, one per line. Flags on the command line take precedence."
EXAMPLES = """Train a Stable Diffusion hypernetwork on a folder of images.

examples:
  python train_hypernetwork.py --config examples/configs/quickstart.yaml

  python train_hypernetwork.py --config examples/configs/8gb.yaml \\
      --train_data_dir my_images --output_dir output/my_style --validation_prompt "a house by the sea"

To resume, run the same command again. For several GPUs, or to use your `accelerate config`, replace `python` with
`accelerate launch`."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> typing.NoReturn:
        """Raise instead of printing the whole usage."""
        raise UserError(explain_missing(message))


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the training options, made from the fields of `TrainingConfig`."""
    width = min(100, shutil.get_terminal_size().columns) - 2

    def formatter(prog: str) -> argparse.HelpFormatter:
        return argparse.RawDescriptionHelpFormatter(prog, max_help_position=30, width=width)

    parser = _Parser(
        prog="train_hypernetwork.py",
        usage="%(prog)s --pretrained_model_name_or_path MODEL --train_data_dir FOLDER [options]",
        description=EXAMPLES,
        formatter_class=formatter,
        allow_abbrev=False,
    )
    use_plain_numbers(parser)
    for heading, fields in option_groups():
        group = parser.add_argument_group(heading)
        if heading == next(iter(GROUPS)):
            group.add_argument("--config", metavar="FILE.yaml", help=CONFIG_HELP)
        for field in fields:
            text = field.metadata["help"]
            if field.default is not None and not isinstance(field.default, bool):
                has_words = any(map(str.isalnum, str(field.default)))
                text += f" Default: {field.default if has_words else repr(field.default)}."
            options = argument_type(field.type)
            if field.name in REPEATABLE:
                options |= {"nargs": "*" if field.name == "lora" else "+", "action": "extend"}
            if field.name in SEVERAL:
                options["nargs"] = "+"
            depends = field.name in ("max_train_steps", "lr_scheduler")  # on the learning rate
            default = None if depends else field.default
            group.add_argument(f"--{field.name}", default=default, help=text.replace("%", "%%"), **options)
            if field.default is True:
                off = f"Turn --{field.name} off."
                group.add_argument(f"--no_{field.name}", dest=field.name, action="store_false", default=True, help=off)
    return parser


def option_groups() -> list[tuple[str, list[dataclasses.Field]]]:
    """Return each heading of `GROUPS` with the fields of `TrainingConfig` below it."""
    headings = {first: heading for heading, first in GROUPS.items()}
    groups: list[tuple[str, list[dataclasses.Field]]] = []
    for field in dataclasses.fields(TrainingConfig):
        if field.name in headings:
            groups.append((headings[field.name], []))
        groups[-1][1].append(field)
    return groups


def argument_type(annotation: typing.Any) -> dict[str, typing.Any]:
    """Return how argparse takes an option of this type: `int`, `bool | None`, `Literal[...]`, `list[str]` and so on."""
    if isinstance(annotation, types.UnionType):
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    if typing.get_origin(annotation) is typing.Union:  # Literal | None
        (annotation,) = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        choices = typing.get_args(annotation)
        return {"choices": choices, "type": functools.partial(find_word, choices=choices, same_words=SAME_CHOICES)}
    if annotation is bool:
        return {"type": parse_bool, "nargs": "?", "const": True, "metavar": "true|false"}
    if annotation in (int, float):
        return {"type": annotation, "metavar": "N" if annotation is int else "X"}
    return {"metavar": "TEXT"}


def parse_bool(text: str) -> bool:
    """Parse true/false, yes/no, on/off, 1/0, in any case.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text}: write true or false")
    return words[text.lower()]


def parse_config(arguments: list[str] | None = None) -> TrainingConfig:
    """Parse a command line; options of `--config FILE.yaml` come first, so that explicit flags win.

    Raises:
        UserError: for an unknown flag or key (the message names the nearest), or an invalid value.
    """
    arguments = expand_home(_with_underscores(sys.argv[1:] if arguments is None else arguments))
    parser = build_parser()
    given, rest = parser.parse_known_args(arguments)
    check_swallowed(parser, given)
    if rest:
        raise UserError(explain_rest(parser, arguments, rest))
    if given.config:
        # given on the command line, these replace those of the file instead of extending them
        replaced = {name for name in REPEATABLE if getattr(given, name) is not None}
        options = {key: value for key, value in read_options(given.config).items() if key not in replaced}
        try:
            flags = expand_home(options_to_flags(options))
        except UserError as error:
            raise UserError(f"--config {given.config}: {error}") from None
        given = parser.parse_args(flags + arguments)
    options = vars(given)
    options.pop("config")
    if options["max_train_steps"] is None:
        options["max_train_steps"] = default_steps(options["learning_rate"], options["num_train_epochs"])
    if options["lr_scheduler"] is None:
        options["lr_scheduler"] = default_scheduler(options["learning_rate"])
    return check_options(TrainingConfig(**options))


def _with_underscores(arguments: typing.Sequence[str]) -> list[str]:
    """Accept --train-data-dir for --train_data_dir."""
    parts = [argument.partition("=") for argument in map(str, arguments)]
    return [
        "--" + name[2:].replace("-", "_") + equals + value if name.startswith("--") else name + equals + value
        for name, equals, value in parts
    ]


def run_label(config: TrainingConfig, arguments: list[str] | None = None) -> str:
    """Return the trackers' name for the run: --run_name, or its name and the options on its command line.

    Those options are how runs of one configuration file differ.
    """
    if config.run_name:
        return config.run_name
    given = [flag.partition("=")[0] for flag in _with_underscores(sys.argv[1:] if arguments is None else arguments)]
    names = [flag[2:].removeprefix("no_") if flag == "--no_guard" else flag[2:] for flag in given if flag[:2] == "--"]
    identity = {field.name for field in dataclasses.fields(TrainingConfig)} - CHANGEABLE
    changed = config.changed(name for name in dict.fromkeys(names) if name in identity | LABELED)
    changed = {key: value for key, value in changed.items() if key not in UNLABELED}
    changed |= {"lora": lora_names(config.lora or [])} if "lora" in changed else {}
    return ", ".join([str(config.name), *(f"{key}={value}" for key, value in changed.items())])[:120]


def read_options(path: str | Path, where: str = "--config") -> dict[str, typing.Any]:
    """Return the entries of a YAML file: None, lists, mappings, and all other values as literal text.

    Raises:
        UserError: if there is no such file, or it is not a mapping.
    """
    if str(path).lower().endswith(".toml"):
        raise UserError(f"{where} {path}: TOML is not supported; write YAML, with lines such as max_train_steps: 1000")
    try:
        entries = yaml.load(read_text(path, MAX_YAML), TextLoader)
    except OSError as error:
        preset = PRESETS / f"{Path(path).name.removesuffix('.yaml')}.yaml"
        hint = f"; did you mean {os.path.relpath(preset)}?" if preset.is_file() and not Path(path).exists() else ""
        raise UserError(f"{where} {path}: {error.strerror}{hint}") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        if isinstance(error, OptionsError):
            raise UserError(f"{where} {path}: line {line}: {error.problem}") from None
        hint = "text with brackets or colons needs quotes"
        if error.context == "while parsing a block collection" and str(error.problem).endswith("'?'"):  # a key
            hint = "a dash starts an item of a list; options are lines without one"
        raise UserError(f"{where} {path}: it is not valid YAML (line {line}: {error.problem}); {hint}") from None
    except RecursionError:
        raise UserError(f"{where} {path}: it is not valid YAML (it is nested too deeply)") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{where} {path}: it is not valid YAML ({reason(error)})") from None
    if not isinstance(entries, dict):
        raise UserError(f"{where} {path}: it must hold lines such as max_train_steps: 1000")
    return entries


def options_to_flags(options: dict[str, typing.Any]) -> list[str]:
    """Turn options by name, such as a YAML file's entries, into flags, so that both are converted by the same rules.

    Raises:
        UserError: for an unknown option (the message names the nearest), a list where none is accepted, an empty list
            item, or a mapping.
    """
    names = {field.name for field in dataclasses.fields(TrainingConfig)}
    flags: list[str] = []
    if "config" in options:
        raise UserError("config: it cannot be set here; write that file's lines here instead")
    if unknown := [str(key) for key in options if key not in names]:
        raise UserError(explain_unknown(unknown, names, "{}"))
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, list) and key not in LISTS:
            raise UserError(f"{key}: [...] is a list in YAML; put the value in quotes")
        items = value if isinstance(value, list) else [value]
        for number, item in enumerate(items, start=1):
            place = f"{key}, item {number}" if isinstance(value, list) else key
            if item is None:
                raise UserError(f"{place}: it is empty; write a value, or leave the item out")
            if not isinstance(item, (str, int, float)):
                kind = "a mapping (key: value)" if isinstance(item, dict) else "a list or set"
                raise UserError(f"{place}: it is {kind} in YAML, not text; put the value in quotes")
        if isinstance(value, list) and key in REPEATABLE:
            flags += [f"--{key}={item}" for item in value]  # an item may start with a dash
        elif isinstance(value, list) and value and key in SEVERAL:
            flags += [f"--{key}", *(f"./{item}" if str(item).startswith("-") else str(item) for item in value)]
        else:
            flags.append(f"--{key}={','.join(map(str, items))}")
    return flags


def options_tables() -> str:
    """Return all options as Markdown, one table per group, for docs/options.md."""
    lines: list[str] = []
    for heading, fields in option_groups():
        lines += [f"## {heading}", "", "| option | default | meaning |", "| --- | --- | --- |"]
        if heading == next(iter(GROUPS)):
            lines.append(f"| `--config` |  | {CONFIG_HELP} |")
        for field in fields:
            default = "" if field.default is None else f"`{field.default}`"
            lines.append(f"| `--{field.name}` | {default} | {field.metadata['help'].replace('|', '&#124;')} |")
        lines.append("")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(options_tables())
