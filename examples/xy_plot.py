#!/usr/bin/env python
"""Plot X/Y grids: one labeled image for every combination of two settings.

    python examples/xy_plot.py --x checkpoint none "output/my_style/checkpoints/*" --y strength 0.5 1 --prompt "a cat"
    python examples/xy_plot.py --x strength "0-1.5 [4]" --y seed "1-3" --hypernetwork output/my_style --prompt "a cat"
    python examples/xy_plot.py --x prompt "a cat" "a house by the sea" --y guidance 3 7 --hypernetwork output/my_style

An axis is checkpoint, strength, seed, guidance, prompt or steps, followed by its values. Checkpoints are folders,
files, patterns, or none; numbers may be ranges: "1-5", "1-10 (+3)", "0-1 [5]". To resume, run the same command again:
finished images are kept beside the grid, and only the missing ones are generated.
"""

import argparse
import dataclasses
import hashlib
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import ScriptParser, check_output_file, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import diffusers
import torch
from PIL import Image
from tqdm.auto import tqdm

from hypernet.cli.generation_options import (
    add_generation_options,
    choose_model,
    make_settings,
    model_options,
    pair_strengths,
)
from hypernet.cli.option_notes import unquoted_note
from hypernet.formats.trained_folder import read_trained_config
from hypernet.generation.generator import GenerationSettings, ImageGenerator, load_for_generation, weights_sha256
from hypernet.generation.infotext import free_path, parse_infotext, read_png_infotext, save_png, write_infotext
from hypernet.generation.prompt_tags import tag_name
from hypernet.generation.xy_axes import KINDS, Axis, parse_axis
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.prompt_parser import unescape
from hypernet.stable_diffusion.schedulers import find_sampler
from hypernet.stable_diffusion.text_encoding import embeds_key
from hypernet.training.trackers import sync_line, wandb_mode
from hypernet.training.wandb_rules import MAX_NAME, check_wandb_settings
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid

OPTION_OF = {"checkpoint": "hypernetwork", "guidance": "guidance_scale"}  # axis -> the option it replaces
DECIMAL = ("strength", "guidance")  # axes whose values may be fractions
FIELD_OF = {"seed": "seed", "steps": "steps", "guidance": "guidance_scale"}  # axis -> field of GenerationSettings


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the options; `x` and `y` become an `Axis`.

    Raises:
        UserError: for options that cannot work.
    """
    parser = ScriptParser(__doc__)
    axis: dict[str, Any] = {"nargs": "+", "metavar": ("AXIS", "VALUE")}
    parser.add_argument("--x", required=True, help=f"columns: {', '.join(KINDS)}, followed by its values", **axis)
    parser.add_argument("--y", help="rows, likewise; default: one row", **axis)
    add_generation_options(parser)
    parser.add_argument("--output", type=Path, default=Path("output/xy_plot.png"), help="PNG; default: %(default)s")
    parser.add_argument("--wandb", action="store_true", help="also log a table to Weights & Biases")
    parser.add_argument("--tracker_project_name", default="hypernetworks", help="W&B project; default: %(default)s")
    args = parser.parse_args(arguments)
    words = {"--x": args.x, "--y": args.y or [""]}
    args.x = parse_axis("--x", args.x)
    args.y = parse_axis("--y", args.y) if args.y else Axis("", (None,), ("",))
    for option in words:
        print_axis_notes(option, *words[option])
    check_arguments(args)
    return args


def print_axis_notes(option: str, kind: str, *words: str) -> None:
    """Print a note if 0,5 probably means 0.5 (a comma separates values), or a prompt probably lacks quotes."""
    if kind == "prompt" and (note := unquoted_note(f"{option.lstrip('-')} prompt", words)):
        print(f"note: {note}", file=sys.stderr)
    pairs = [word for word in words if kind in DECIMAL and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", word)]
    if pairs:
        first = pairs[0].strip()
        problem = (
            f"these are two values, {first.replace(',', ' and ')}; a decimal point is written {first.replace(',', '.')}"
        )
        print(f"note: {option} {kind} {first}: {problem}", file=sys.stderr)


def check_arguments(args: argparse.Namespace) -> None:
    """Check that axes and options go together, and that the grid can be written.

    Raises:
        UserError: if not.
    """
    kinds = args.x.kind, args.y.kind
    if kinds[0] == kinds[1]:
        raise UserError(f"--y {kinds[1]}: --x has the same axis")
    for kind in filter(None, kinds):
        option = OPTION_OF.get(kind, kind)
        if getattr(args, option) is not None:
            raise UserError(f"--{option}: the axis {kind} sets it; leave one of them out")
    if args.prompt is None and "prompt" not in kinds:
        raise UserError("--prompt is missing; it says what to generate")
    if "strength" in kinds and "checkpoint" not in kinds and not args.hypernetwork:
        raise UserError("--hypernetwork is missing; the axis strength has nothing to act on")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output}: it must end in .png")
    if args.wandb:
        check_wandb(args.tracker_project_name, args.output.stem)
    check_output_file(args.output, f"--output {args.output}")


# --- Cells


def make_cells(args: argparse.Namespace) -> list[list[GenerationSettings]]:
    """Return the settings of all cells, row by row."""
    return [[make_cell(args, {args.x.kind: x, args.y.kind: y}) for x in args.x.values] for y in args.y.values]


def make_cell(args: argparse.Namespace, values: dict[str, Any]) -> GenerationSettings:
    """Return the settings of a cell: the options, overridden by its values on the axes."""
    hypernetworks = [values["checkpoint"]] if "checkpoint" in values else args.hypernetwork or []
    stack = pair_strengths(hypernetworks, args.strength)
    stack = [(path, values.get("strength", strength)) for path, strength in stack if path is not None]
    changes = {field: values.get(kind) for kind, field in FIELD_OF.items()}
    return make_settings(args, values.get("prompt", args.prompt), stack, **changes)


def cell_key(settings: GenerationSettings, model: str) -> str:
    """Return 16 hex digits that change with anything that shapes a cell, including the bytes of its hypernetworks.

    Args:
        model: the model's `ModelSource.identity()`.
    """
    stack = [(weights_sha256(path), strength) for path, strength in settings.hypernetworks if strength]
    others = dataclasses.asdict(dataclasses.replace(settings, hypernetworks=()))
    others |= {name: embeds_key(others[name]) for name in ("prompt", "negative_prompt")}
    if settings.sampler is not None:  # several names may stand for the same sampler
        sampler, options = find_sampler(settings.sampler)
        others["sampler"] = sampler.__name__, options
    environment = torch.cuda.is_available(), diffusers.__version__
    return hashlib.sha256(repr((others, stack, model, environment)).encode()).hexdigest()[:16]


def generate_missing(missing: dict[Path, GenerationSettings], source: ModelSource, batch_size: int) -> None:
    """Generate the missing cells, and save each as soon as it is finished."""
    generator = ImageGenerator(load_for_generation(source))
    generator.pipe.set_progress_bar_config(disable=True)
    paths, settings = list(missing), list(missing.values())
    with tqdm(total=len(paths), desc="Generating") as bar:
        for index, image in generator.generate_all(settings, batch_size):
            save_png(paths[index], image, generator.infotext(settings[index], image))
            bar.update()


# --- The grid


def build_grid(args: argparse.Namespace, paths: list[list[Path]], first: GenerationSettings) -> Image.Image:
    """Return the labeled grid of the finished cells; `first` are the settings of the first one."""
    rows = [[Image.open(path).convert("RGB") for path in row] for row in paths]
    sampler = read_infotext(paths[0][0])[2].get("Sampler")
    return labeled_grid(rows, args.y.labels, args.x.labels, shared_settings(args, first, sampler))


def shared_settings(args: argparse.Namespace, first: GenerationSettings, sampler: str | None) -> str:
    """Return the grid's caption: the prompt, hypernetworks and sampling options that all cells share.

    Args:
        first: the settings of a cell.
        sampler: the name of its sampler.
    """
    kinds = args.x.kind, args.y.kind
    strength = "" if "strength" in kinds else "{:g}"
    stack = [f"{tag_name(path)} {strength.format(value)}".strip() for path, value in first.hypernetworks]
    shown = [] if "prompt" in kinds else [unescape(first.prompt).strip()]
    shown += [] if "checkpoint" in kinds else stack
    if "checkpoint" in kinds:  # the labels show only the steps
        axis = args.x if args.x.kind == "checkpoint" else args.y
        configs = [read_trained_config(Path(path)) for path in axis.values if path]
        shown += sorted({str(config["name"]) for config in configs if config and "name" in config})
    named = {"steps": f"{first.steps} steps", "sampler": sampler, "guidance": f"guidance {first.guidance_scale:g}"}
    named["seed"] = f"seed {first.seed}"
    return "; ".join(shown + [text for kind, text in named.items() if text and kind not in kinds])


def grid_infotext(args: argparse.Namespace, paths: list[list[Path]]) -> str:
    """Return the infotext of the grid: the first cell's, plus the axes."""
    prompt, negative_prompt, fields = read_infotext(paths[0][0])
    for letter, axis in (("X", args.x), ("Y", args.y)):
        fields |= {f"{letter} axis": axis.kind or None, f"{letter} values": ", ".join(axis.labels) or None}
    names = "".join(path.name for row in paths for path in row)
    fields["Cells"] = hashlib.sha256(names.encode()).hexdigest()[:10]
    return write_infotext(prompt, negative_prompt, fields)


def read_infotext(path: Path) -> tuple[str, str, dict[str, Any]]:
    """Return prompt, negative prompt and fields of a finished cell."""
    return parse_infotext(read_png_infotext(path) or "")


# --- Weights & Biases


def check_wandb(project: str, name: str) -> None:
    """Raise UserError if wandb is not installed, or refuses the project's or the grid's name."""
    from accelerate.utils import is_wandb_available

    if not is_wandb_available():
        raise UserError("--wandb: wandb is not installed; pip install wandb")
    check_wandb_settings(project)
    if len(name) > MAX_NAME:
        raise UserError(f"--output: its name becomes the run's, for which W&B accepts at most {MAX_NAME} characters")


def log_table(
    args: argparse.Namespace, cells: list[list[GenerationSettings]], paths: list[list[Path]], grid: Path
) -> None:
    """Log the grid, and a table with the image and settings of each cell; offline unless logged in."""
    import wandb

    run = wandb.init(project=args.tracker_project_name, name=grid.stem, dir=str(grid.parent), mode=wandb_mode())
    names = [field.name for field in dataclasses.fields(GenerationSettings)]
    table = wandb.Table(columns=["image", *filter(None, (args.x.kind and "x", args.y.kind and "y")), *names])
    for row, y in enumerate(args.y.labels):
        for column, x in enumerate(args.x.labels):
            settings = dataclasses.asdict(cells[row][column])
            stack = [f"{tag_name(path)} {strength:g}" for path, strength in settings["hypernetworks"]]
            settings |= {"hypernetworks": ", ".join(stack), "size": "x".join(map(str, settings["size"] or ()))}
            table.add_data(wandb.Image(str(paths[row][column])), x, *([y] if args.y.kind else []), *settings.values())
    run.log({"xy_plot": table, "grid": wandb.Image(str(grid))})
    line = sync_line(run)
    run.finish()
    if line:
        print(line)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    cells = make_cells(args)
    source, guidance_scale = choose_model(list(itertools.chain(*cells)), **model_options(args))
    if args.guidance_scale is None and "guidance" not in (args.x.kind, args.y.kind):
        cells = [[dataclasses.replace(cell, guidance_scale=guidance_scale) for cell in row] for row in cells]
    model, folder = source.identity(), args.output.with_name(f"{args.output.stem}_cells")
    paths = [[folder / f"{cell_key(cell, model)}.png" for cell in row] for row in cells]

    wanted = dict(zip(itertools.chain(*paths), itertools.chain(*cells)))
    missing = {path: cell for path, cell in wanted.items() if read_png_infotext(path) is None}
    columns, rows, reused = len(args.x.values), len(args.y.values), len(wanted) - len(missing)
    print(f"{columns} x {rows} cells: {len(missing)} to generate, {reused} reused from {folder}")
    if missing:
        generate_missing(missing, source, args.batch_size)
    text = grid_infotext(args, paths)
    grid = free_path(args.output, text)
    save_png(grid, build_grid(args, paths, cells[0][0]), text)
    print(grid)
    if args.wandb:
        log_table(args, cells, paths, grid)


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; finished images are kept, and the same command resumes from here")
