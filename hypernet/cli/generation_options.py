"""The options shared by the scripts that generate images, and the settings and models they choose."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hypernet import config
from hypernet.cli.option_notes import placeholder_note, strength_note
from hypernet.cli.training_options import argument_type
from hypernet.config import TrainingConfig
from hypernet.formats.load_save import find_weights
from hypernet.formats.stack_file import is_stack_file, member_files
from hypernet.formats.trained_folder import find_run_options
from hypernet.generation.generator import GenerationSettings
from hypernet.generation.prompt_tags import find_hypernetwork
from hypernet.generation.tag_syntax import split_prompt
from hypernet.stable_diffusion.model_source import MODEL_DEFAULTS, MODEL_OPTIONS, ModelSource
from hypernet.utils.errors import UserError, counted

MODEL, *OTHER_NAMES = MODEL_OPTIONS  # the scripts call the first option --model
PROMPT_OPTIONS = ("clip_skip", "max_token_chunks", "prompt_emphasis")  # how prompts are read, whatever the model
SETTINGS = ("negative_prompt", "seed", "steps", "guidance_scale", "size", "sampler")
GUIDANCE_SCALE = 7.5  # for hypernetworks whose run is unknown
Stack = Sequence[tuple[str, float]]  # (path or Hub id, strength) of hypernetworks, in the order they are applied


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on the base model and how prompts are read; those not given default to the run's."""
    add, fields = parser.add_argument, {field.name: field for field in dataclasses.fields(TrainingConfig)}
    add("--model", help="folder, file or Hub id; default: the base model of the hypernetwork's run")
    for name in OTHER_NAMES:
        options = argument_type(fields[name].type) | ({"nargs": "*", "action": "extend"} if name == "lora" else {})
        text = fields[name].metadata["help"].split(" Default:")[0].rstrip(".").replace("%", "%%")
        add(f"--{name}", help=f"{text}; default: as in training", **options)


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options on what to generate, and with which hypernetworks; those not given are None."""
    add = parser.add_argument
    add("--prompt", help="may contain the WebUI's tags, such as <hypernet:my_style:0.8>")
    add("--negative_prompt", default="", help="what to avoid")
    add("--hypernetwork", nargs="+", help="trained folders, checkpoints, .pt or .hns files, Hub ids; applied in order")
    add("--strength", type=float, nargs="+", help="one for all, or one for each; 0 is the base model; default: 1")
    add("--hypernetwork_dir", default="output", help="folder to search for the names in tags; default: %(default)s")
    add_model_options(parser)
    add("--sampler", help='by its name in the WebUI or diffusers, such as "Euler a"; default: the model\'s')
    add("--seed", type=int, help="of the noise; default: 0")
    add("--size", type=parse_size, help="WIDTHxHEIGHT, or one side, in pixels; default: the model's")
    add("--steps", type=int, help="sampling steps; default: 25")
    add("--guidance_scale", type=float, help=f"default: that of the run's previews, else {GUIDANCE_SCALE}")
    add("--batch_size", type=parse_count, default=1, help="images per batch; default: %(default)s")


def parse_size(text: str) -> tuple[int, int]:
    """Parse "512" or "768x512" into (width, height).

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    try:
        return config.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_count(text: str) -> int:
    """Parse a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: for anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be a whole number, 1 or more")
    return int(text)


def pair_strengths(hypernetworks: Sequence[Any], strengths: Sequence[float] | None) -> list[tuple[Any, float]]:
    """Pair hypernetworks with the values of --strength: one for all, or one for each; 1 if there are none.

    Raises:
        UserError: if the numbers do not match.
    """
    if not strengths:
        return [(hypernetwork, 1.0) for hypernetwork in hypernetworks]
    if not hypernetworks or len(strengths) not in (1, len(hypernetworks)):
        problem = f"{len(strengths)} for {counted(len(hypernetworks), 'hypernetwork')}"
        raise UserError(f"--strength: {problem}; give one for all or one for each (a tag has its own)")
    return list(zip(hypernetworks, strengths if len(strengths) > 1 else [*strengths] * len(hypernetworks)))


def make_settings(args: argparse.Namespace, prompt: str, stack: Stack, **changes: Any) -> GenerationSettings:
    """Return the settings of one image: the options, overridden by `changes` that are not None.

    The hypernetworks of the prompt's tags are applied first, then those of `stack`.

    Raises:
        UserError: for an invalid tag or value.
    """
    text, tags = split_prompt(prompt)
    tagged = [(str(find_hypernetwork(name, args.hypernetwork_dir)), strength) for name, strength in tags]
    given = {name: getattr(args, name) for name in SETTINGS} | {
        name: value for name, value in changes.items() if value is not None
    }
    given = {name: value for name, value in given.items() if value is not None}
    return GenerationSettings(prompt=text, hypernetworks=(*tagged, *stack), **given)


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the values of `add_model_options`, None for those not given, as arguments of `find_model`."""
    return {"model": args.model} | {name: getattr(args, name) for name in OTHER_NAMES}


def choose_model(settings: Sequence[GenerationSettings], **given: Any) -> tuple[ModelSource, float]:
    """Return the model to generate with, and the default guidance scale: that of the first run's previews, else 7.5.

    Args:
        given: as `model_options` returns them.

    Raises:
        UserError: if a hypernetwork does not exist, nothing names a model, or the hypernetworks' runs name several.
    """
    paths = dict.fromkeys(path for each in settings for path, _ in each.hypernetworks)
    for path in paths:
        find_weights(path)
    files = [file for path in paths for file in (member_files(path) if is_stack_file(path) else [path])]
    strengths = [strength for each in settings for _, strength in each.hypernetworks]
    texts = [text for each in settings for text in (each.prompt, each.negative_prompt)]
    for note in filter(None, (strength_note(strengths), placeholder_note(texts))):
        print(f"note: {note}", file=sys.stderr)
    runs = [options for options in map(find_run_options, files) if options]
    guidance_scale = runs[0].get("validation_guidance_scale", GUIDANCE_SCALE) if runs else GUIDANCE_SCALE
    hint = "name a folder, a file or a Hub id (only trained folders record their base model)"
    return find_model(runs, hint, **given), guidance_scale


def find_model(runs: Sequence[dict[str, Any]], hint: str, model: str | None = None, **options: Any) -> ModelSource:
    """Return the base model of some runs, with the options that belong to it.

    If `model` differs from theirs, only the options on how prompts are read are taken from the runs.

    Args:
        runs: the options of each, as `find_run_options` returns them.
        hint: what to do if nothing names a model.
        model: folder, file or Hub id to use instead.
        options: fields of `ModelSource` that override those of the runs; None has no effect.

    Raises:
        UserError: if nothing names a model, the runs differ, or the model does not exist.
    """
    given = {MODEL: model, **options}
    runs = [run for run in runs if run.get(MODEL)]
    is_other = model and any(_resolve(run[MODEL]) != _resolve(model) for run in runs)
    chosen, ignored = {}, []
    for name in MODEL_OPTIONS:
        values = list(dict.fromkeys(_option_of_run(run, name) for run in runs))
        if given.get(name) is not None:
            chosen[name] = given[name]
        elif is_other and name not in PROMPT_OPTIONS:
            ignored += [f"--{name}"] * any(value != MODEL_DEFAULTS[name] for value in values)
        elif len(values) > 1:
            option = "model" if name == MODEL else name
            raise UserError(f"--{option} is missing: the runs used {values[0]} and {values[1]}; choose one")
        elif values:
            chosen[name] = values[0]
    if not chosen.get(MODEL):
        raise UserError(f"--model is missing: {hint}")
    if ignored:
        print(
            f"note: the run used a different model from {model}, so its {', '.join(ignored)} are ignored",
            file=sys.stderr,
        )
    source = ModelSource.from_options(chosen, option="--model")
    source.check()
    return source


def _resolve(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _option_of_run(run: dict[str, Any], name: str) -> Any:
    """Return an option of a run; its default if the run is older than the option."""
    value = run.get(name)
    return tuple(value) if isinstance(value, list) else MODEL_DEFAULTS.get(name) if value is None else value
