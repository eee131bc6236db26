#!/usr/bin/env python
"""The guides' X/Y plot: one picture for every combination of two things, in a labelled grid.

    python examples/xy_plot.py --x checkpoint none "output/my_style/checkpoints/*" --y strength 0.5 1 --prompt "a cat"
    python examples/xy_plot.py --x strength "0-1.5 [4]" --y seed "1-3" --hypernetwork output/my_style --prompt "a cat"
    python examples/xy_plot.py --x prompt "a cat" "a house by the sea" --y guidance 3 7 --hypernetwork output/my_style

An axis is checkpoint, strength, seed, guidance, prompt or steps, then its values. Checkpoints are folders, files and
patterns, or none; numbers may be ranges: "1-5", "1-10 (+3)", "0-1 [5]". To resume, run the same command again: finished
pictures are kept beside the grid, and only what is missing is drawn.
"""

import dataclasses
import hashlib
import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import diffusers
import torch
from PIL import Image
from tqdm.auto import tqdm

from hypernet.cli.generation_options import add_generation_options, choose_model, make_settings, read_stack
from hypernet.cli.script import ScriptParser, run_script
from hypernet.formats.trained_folder import trained_config
from hypernet.generation.generator import GenerationSettings, ImageGenerator, load_for_generation, weights_sha256
from hypernet.generation.infotext import free_path, parse_infotext, read_png_infotext, save_png, write_infotext
from hypernet.generation.prompt_tags import LORA_TAG, split_prompt, tag_name
from hypernet.generation.xy_axes import KINDS, Axis, parse_axis
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.stable_diffusion.prompt_parser import unescape
from hypernet.training.trackers import sync_line, wandb_mode
from hypernet.utils.atomic_files import check_writable
from hypernet.utils.errors import UserError
from hypernet.utils.image_grid import labeled_grid

OPTION_OF = {"checkpoint": "hypernetwork", "guidance": "guidance_scale"}  # axis -> the option that it stands for
FIELD_OF = {"seed": "seed", "steps": "steps", "guidance": "guidance_scale"}  # axis -> its field in PictureSettings


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    axis = {"nargs": "+", "metavar": ("AXIS", "VALUE")}
    parser.add_argument("--x", required=True, help=f"the columns: {', '.join(KINDS)}, then its values", **axis)
    parser.add_argument("--y", help="the rows, likewise; default: one row", **axis)
    add_generation_options(parser)
    parser.add_argument("--output", type=Path, default=Path("output/xy_plot.png"), help="PNG; default: %(default)s")
    parser.add_argument("--wandb", action="store_true", help="also write a table to Weights & Biases")
    parser.add_argument("--tracker_project_name", default="hypernetworks", help="its project; default: %(default)s")
    args = parser.parse_args(arguments)
    args.x = parse_axis("--x", args.x)
    args.y = parse_axis("--y", args.y) if args.y else Axis("", (None,), ("",))
    check_arguments(args)
    return args


def check_arguments(args):
    """Raises: UserError for axes and options that do not fit together, or a grid that cannot be written."""
    kinds = args.x.kind, args.y.kind
    if kinds[0] == kinds[1]:
        raise UserError(f"--y {kinds[1]}: that is the other axis already")
    for kind in filter(None, kinds):
        option = OPTION_OF.get(kind, kind)
        if getattr(args, option) is not None:
            raise UserError(f"--{option}: its values are those of the axis {kind}; leave one of them out")
    if args.prompt is None and "prompt" not in kinds:
        raise UserError("--prompt is missing: what shall be drawn?")
    if "strength" in kinds and "checkpoint" not in kinds and not args.hypernetwork:
        raise UserError("--hypernetwork is missing: of which one does the strength change?")
    if args.output.suffix.lower() != ".png":
        raise UserError(f"--output {args.output}: let it end in .png")
    if args.wandb:
        check_wandb()
    try:
        check_writable(args.output.parent)
    except OSError as error:
        raise UserError(f"--output {args.output}: it cannot be written ({error.strerror})") from None


# --- What is to be drawn


def plan(args) -> list[list[GenerationSettings]]:
    """The settings of every cell, rows of columns."""
    return [[make_cell(args, {args.x.kind: x, args.y.kind: y}) for x in args.x.values] for y in args.y.values]


def make_cell(args, values: dict) -> GenerationSettings:
    """The options' picture with the values of the axes in their places."""
    stack = read_stack(args, [values["checkpoint"]] if "checkpoint" in values else args.hypernetwork)
    stack = [(path, values.get("strength", strength)) for path, strength in stack if path is not None]
    changes = {field: values.get(kind) for kind, field in FIELD_OF.items()}
    return make_settings(args, values.get("prompt", args.prompt), stack, **changes)


def cell_key(picture: GenerationSettings, model: str) -> str:
    """Sixteen hex digits that change with whatever shapes a cell; a hypernetwork counts by its bytes."""
    stack = [(weights_sha256(path), strength) for path, strength in picture.hypernetworks if strength]
    settings = dataclasses.asdict(dataclasses.replace(picture, hypernetworks=()))
    where = torch.cuda.is_available(), diffusers.__version__
    return hashlib.sha256(repr((settings, stack, model, where)).encode()).hexdigest()[:16]


# --- Drawing


def draw_missing(missing: dict[Path, GenerationSettings], source: ModelSource, batch_size: int):
    """Draw cells into their files, those of one hypernetwork together; each is on disk as soon as it is done."""
    generator = ImageGenerator(load_for_generation(source))
    generator.pipe.set_progress_bar_config(disable=True)
    paths, pictures = list(missing), list(missing.values())
    with tqdm(total=len(paths), desc="Drawing") as bar:
        for index, image in generator.generate_all(pictures, batch_size):
            save_png(paths[index], image, generator.infotext(pictures[index], image))
            bar.update()


def compose(args, paths: list[list[Path]]) -> Image.Image:
    rows = [[Image.open(path).convert("RGB") for path in row] for row in paths]
    return labeled_grid(rows, args.y.labels, args.x.labels, shared_settings(args, paths))


def shared_settings(args, paths) -> str:
    """What the axes leave as it is: the prompt with its hypernetworks, and how it was sampled."""
    prompt, _, fields = parse_infotext(read_png_infotext(paths[0][0]))
    kinds = args.x.kind, args.y.kind
    text, tags = split_prompt(unescape(LORA_TAG.sub("", prompt)))
    strength = "" if "strength" in kinds else "{:g}"
    shown = [] if "prompt" in kinds else [text.strip()]
    shown += [] if "checkpoint" in kinds else [f"{name} {strength.format(value)}".strip() for name, value in tags]
    if "checkpoint" in kinds:  # whose steps the labels count
        runs = [
            trained_config(Path(value))
            for axis in (args.x, args.y)
            for value in axis.values
            if axis.kind == "checkpoint" and value
        ]
        shown += sorted({run["name"] for run in runs if run})
    named = {"steps": ("Steps", "{} steps"), "sampler": ("Sampler", "{}"), "guidance": ("CFG scale", "guidance {}")}
    shown += [form.format(fields[field]) for kind, (field, form) in named.items() if kind not in kinds]
    return "; ".join(shown + ([] if "seed" in kinds else [f"seed {fields['Seed']}"]))


def describe(args, paths) -> str:
    """The text of the grid: what its cells share, as the first one has it, and the axes."""
    prompt, negative_prompt, fields = parse_infotext(read_png_infotext(paths[0][0]))
    for letter, axis in (("X", args.x), ("Y", args.y)):
        fields |= {f"{letter} axis": axis.kind or None, f"{letter} values": ", ".join(axis.labels) or None}
    names = "".join(path.name for row in paths for path in row)
    fields["Cells"] = hashlib.sha256(names.encode()).hexdigest()[:10]
    return write_infotext(prompt, negative_prompt, fields)


# --- Weights & Biases


def check_wandb():
    from accelerate.utils import is_wandb_available

    if not is_wandb_available():
        raise UserError("--wandb: wandb is not installed; pip install wandb")


def write_table(args, cells: list[list[GenerationSettings]], paths: list[list[Path]], grid: Path):
    """One row for each cell, its picture and its settings; offline where there is no login."""
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


def main(arguments=None):
    args = parse_arguments(arguments)
    cells = plan(args)
    source, guidance = choose_model(args, list(itertools.chain(*cells)))
    if args.guidance_scale is None and "guidance" not in (args.x.kind, args.y.kind):
        cells = [[dataclasses.replace(cell, guidance_scale=guidance) for cell in row] for row in cells]
    model, folder = source.identity(), args.output.with_name(f"{args.output.stem}_cells")
    paths = [[folder / f"{cell_key(cell, model)}.png" for cell in row] for row in cells]

    wanted = dict(zip(itertools.chain(*paths), itertools.chain(*cells)))
    missing = {path: cell for path, cell in wanted.items() if read_png_infotext(path) is None}
    reused = len(wanted) - len(missing)
    print(f"{len(args.x.values)} x {len(args.y.values)} cells: {len(missing)} to draw, {reused} reused from {folder}")
    if missing:
        draw_missing(missing, source, args.batch_size)
    text = describe(args, paths)
    grid = free_path(args.output, text)
    save_png(grid, compose(args, paths), text)
    print(grid)
    if args.wandb:
        write_table(args, cells, paths, grid)


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; what is drawn is kept, and the same command goes on from here")
