"""The options that the drawing scripts share, and what follows from them."""

import argparse
import dataclasses
import sys
from pathlib import Path

from hypernet import config
from hypernet.cli.training_options import argument_type
from hypernet.config import TrainingConfig
from hypernet.formats.load_save import find_weights
from hypernet.formats.trained_folder import training_options
from hypernet.generation.generator import GenerationSettings
from hypernet.generation.prompt_tags import find_hypernetwork, split_prompt
from hypernet.stable_diffusion.model_source import DEFAULTS, NAMES, ModelSource
from hypernet.utils.errors import UserError

READING = ("clip_skip", "max_token_chunks", "prompt_emphasis")  # how prompts are read, on whatever model


def add_model_options(parser):
    """Which model, and how prompts are read; whatever is left out is as in the training, if that is known."""
    add, meaning = parser.add_argument, {field.name: field for field in dataclasses.fields(TrainingConfig)}
    add("--model", help="folder, file or Hub id; default: the one that the hypernetwork's run names")
    for name in NAMES[1:]:
        options = argument_type(meaning[name].type) | ({"nargs": "*", "action": "extend"} if name == "lora" else {})
        text = meaning[name].metadata["help"].split(" Default:")[0].rstrip(".").replace("%", "%%")
        add(f"--{name}", help=f"{text}; default: as in the training", **options)


def add_generation_options(parser):
    """What is drawn, with what; an option that is left out is None."""
    add = parser.add_argument
    add("--prompt", help="may hold tags of the WebUI's, such as <hypernet:my_style:0.8>")
    add("--negative_prompt", default="", help="what should not be on it")
    add("--hypernetwork", nargs="+", help="trained folders, checkpoints, .pt files or Hub ids; stacked in this order")
    add("--strength", type=float, nargs="+", help="one for all, or one for each; 0 is the plain model; default: 1")
    add("--hypernetwork_dir", default="output", help="where tags look, sub-folders too; default: %(default)s")
    add_model_options(parser)
    add("--sampler", help='by its name in the WebUI or in diffusers, such as "Euler a"; default: the model\'s own')
    add("--seed", type=int, help="of the noise; default: 0")
    add("--size", type=parse_size, help="WIDTHxHEIGHT, or a side, in pixels; default: the model's own")
    add("--steps", type=int, help="sampling steps; default: 25")
    add("--guidance_scale", type=float, help="default: that of the training's previews, else 7.5")
    add("--batch_size", type=parse_count, default=1, help="pictures at a time; more are faster on a large card")


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "512" or "768x512"."""
    try:
        return config.parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def parse_count(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be a whole number, 1 or more")
    return int(text)


def read_stack(args, hypernetworks: list | None) -> list[tuple[str, float]]:
    """(hypernetwork, strength) of each, with the strengths of --strength.

    Raises:
        UserError: if there is not one strength for all, or one for each.
    """
    paths, strengths = hypernetworks or [], args.strength or [1.0]
    if args.strength and (not paths or len(strengths) not in (1, len(paths))):
        problem = f"{len(strengths)} for {len(paths)} hypernetworks"
        raise UserError(
            f"--strength: {problem}; give one for all or one for each, and write that of a tag into the tag"
        )
    return list(zip(paths, strengths * len(paths) if len(strengths) == 1 else strengths))


def make_settings(args, prompt: str, stack, **changes) -> GenerationSettings:
    """The settings of one picture: hypernetworks of the prompt's tags first, then those of `stack`."""
    text, tags = split_prompt(prompt)
    tagged = [(str(find_hypernetwork(name, args.hypernetwork_dir)), strength) for name, strength in tags]
    given = {
        key: getattr(args, key) for key in ("negative_prompt", "seed", "steps", "guidance_scale", "size", "sampler")
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    given = {key: value for key, value in given.items() if value is not None} | changes
    return GenerationSettings(prompt=text, hypernetworks=(*tagged, *stack), **given)


def choose_model(args, pictures: list[GenerationSettings]) -> tuple[ModelSource, float]:
    """The model to draw with, and the guidance scale if none is asked for: that of the training's previews, else 7.5.

    Raises:
        UserError: if a hypernetwork does not exist, nothing names a model, or the hypernetworks name several.
    """
    paths = dict.fromkeys(path for picture in pictures for path, _ in picture.hypernetworks)
    for path in paths:
        find_weights(path)
    runs = [options for options in map(training_options, paths) if options]
    guidance = runs[0].get("validation_guidance_scale", 7.5) if runs else 7.5
    problem = "a folder, a file or a Hub id of the Stable Diffusion to draw with (only trained folders know their own)"
    return find_model(args, runs, problem), guidance


def find_model(args, runs: list[dict], problem: str) -> ModelSource:
    """The model that the options name, or else the one that all the runs were told, with what belongs to it.

    Of another model than the runs' only how prompts are read is taken from them.

    Args:
        args: the options, of which any may be missing.
        runs: what `training_options` says of each; nothing for a run that is not known.
        problem: what to say where nothing names a model.

    Raises:
        UserError: if nothing names a model, the runs differ, or there is none where they say.
    """
    runs = [run for run in runs if run.get(NAMES[0])]
    other = args.model and any(_place(run[NAMES[0]]) != _place(args.model) for run in runs)
    chosen, left_out = {}, []
    for name in NAMES:
        option, of_runs = "model" if name == NAMES[0] else name, [_as_option(run, name) for run in runs]
        several, given = list(dict.fromkeys(of_runs)), getattr(args, option, None)
        if given is not None:
            chosen[name] = given
        elif other and name not in READING:
            left_out += [name] * any(value != DEFAULTS[name] for value in several)
        elif len(several) > 1:
            raise UserError(f"--{option} is missing: they were trained with {several[0]} and {several[1]}; choose one")
        elif several:
            chosen[name] = several[0]
    if not chosen.get(NAMES[0]):
        raise UserError(f"--model is missing: {problem}")
    if left_out:
        options = ", ".join(f"--{name}" for name in left_out)
        print(
            f"note: {args.model} is another model than that of the training, whose {options} are not taken",
            file=sys.stderr,
        )
    source = ModelSource.of(chosen, option="--model")
    source.check()
    return source


def _place(path: str) -> str:
    return str(Path(path).resolve()) if Path(path).exists() else path


def _as_option(run: dict, name: str):
    """What a run was told, or what it did before there was such an option."""
    value = run.get(name)
    return tuple(value) if isinstance(value, list) else DEFAULTS.get(name) if value is None else value
