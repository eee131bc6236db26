#!/usr/bin/env python
"""Train with every combination of some options, one run after the other, and lay the runs side by side on one page.

    python examples/compare.py examples/configs/compare.yaml                    # the quickstart, three activations
    python examples/compare.py my_grid.yaml --output_dir output/grid --jobs 2
    python examples/compare.py output/my_style output/my_style_2        # runs that are there already

A grid is a YAML file with options of train_hypernetwork.py, and under `grid:` lists of values of which every combination is
a run; it needs no account. The same command goes on where it was stopped: runs that are done are not made again, one
that fails does not stop the others. The page is
OUTPUT_DIR/compare.html, one file that needs nothing beside it,
compare.png, the same as a picture, and compare.csv.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import torch

from examples.comparison.grid import read_grid
from examples.comparison.page import write_page
from examples.comparison.results import draw_previews, read_result
from examples.comparison.runs import Run, Runner, run_all
from hypernet.cli.generation_options import parse_count
from hypernet.cli.script import ScriptParser, run_script
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.training.accelerator import choose_mixed_precision
from hypernet.training.init_from import load_init_from
from hypernet.training.run_folder import RunFolder
from hypernet.utils.atomic_files import check_writable
from hypernet.utils.errors import UserError


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("what", nargs="+", type=Path, help="a YAML file with a grid, or folders of runs")
    parser.add_argument(
        "--output_dir", type=Path, help="default: output/ and the YAML file's name, or output/compared_runs"
    )
    parser.add_argument("--jobs", type=parse_count, help="runs at a time; default: as many as there are GPUs, else 1")
    parser.add_argument("--reach", type=float, help="tell also at which step a run's held-out loss was this low")
    parser.add_argument(
        "--prompt",
        nargs="+",
        help="what to draw with all runs; default: the --validation_prompt of the best that has any",
    )
    parser.add_argument("--max_previews", type=parse_count, default=12, help="draw with so many; default: %(default)s")
    parser.add_argument("--dry_run", action="store_true", help="only say which runs there would be")
    parser.add_argument("--overwrite", action="store_true", help="make runs anew whose options are others than before")
    args = parser.parse_args(arguments)
    is_grid = args.what[0].suffix.lower() in (".yaml", ".yml")
    if is_grid and len(args.what) > 1:
        raise UserError(f"{args.what[1]}: one YAML file, or folders of runs")
    args.grid = args.what[0] if is_grid else None
    for option in () if is_grid else ("jobs", "dry_run", "overwrite"):
        if getattr(args, option):
            raise UserError(f"--{option}: it is for a YAML file with a grid; the runs of folders are there already")
    args.output_dir = args.output_dir or Path("output", args.grid.stem if is_grid else "compared_runs")
    return args


def find_runs(folders: list[Path]) -> list[Run]:
    """Runs that are there already, called after their folders.

    Raises:
        UserError: for a folder that holds none.
    """
    for folder in folders:
        if not (folder / "run.json").is_file():
            raise UserError(
                f"{folder}: it holds no run; name folders that train_hypernetwork.py has made, or a YAML file"
            )
    names = [folder.resolve().name for folder in folders]
    return [Run(name if names.count(name) == 1 else str(folder), folder, {}) for name, folder in zip(names, folders)]


def check_output(folder: Path):
    """Raises: UserError if it cannot be written."""
    try:
        check_writable(folder)
    except OSError as error:
        raise UserError(f"--output_dir {folder}: it cannot be written ({error.strerror})") from None


def check_folders(runs: list[Run], overwrite: bool):
    """Raises: UserError if a run's folder holds another run; else the page would show that one's curves and pictures."""
    for run in runs:
        config = parse_config(options_to_flags(run.options))
        choose_mixed_precision(config)
        load_init_from(config)
        RunFolder(config).check(overwrite)


def main(arguments=None):
    args = parse_arguments(arguments)
    failed = {}
    if args.grid:
        runs = read_grid(args.grid, args.output_dir)
        check_folders(runs, args.overwrite)
        names = [run.name for run in runs]
        print(f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
        if args.dry_run:
            done = (
                [run.name for run in runs if Runner(args.output_dir, 1).is_done(run)]
                if args.output_dir.exists()
                else []
            )
            print(*(f"  {'done' if run.name in done else 'to be made':12}{run.name}" for run in runs), sep="\n")
            return
        check_output(args.output_dir)
        failed = run_all(runs, args.output_dir, args.jobs or max(1, torch.cuda.device_count()), args.overwrite)
    else:
        runs = find_runs(args.what)
        check_output(args.output_dir)
    results = [read_result(run, failed.get(run.name), args.reach) for run in runs]
    results.sort(key=lambda result: result.rank)
    title = args.grid.name if args.grid else f"{len(runs)} runs"
    paths = write_page(results, None, args.output_dir, title)  # whatever becomes of the pictures
    previews = draw_previews(results, args.output_dir / "pictures", args.prompt, args.max_previews, runs)
    if previews is not None:
        write_page(results, previews, args.output_dir, title)
    print(f"Look at {paths[0]} (or {paths[1].name}, the same as a picture; {paths[2].name} has the figures)")
    if failed:
        logs = args.output_dir / "logs"
        raise UserError(
            f"{len(failed)} of {len(runs)} runs have failed; the page says why, all that they said is in {logs}"
        )


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; what is done is kept, and the same command goes on from here")
