#!/usr/bin/env python
"""Train with every combination of some options, and compare the runs on one page.

    python examples/compare.py examples/configs/compare.yaml                    # the quickstart with three activations
    python examples/compare.py my_grid.yaml --output_dir output/grid --jobs 2
    python examples/compare.py output/my_style output/my_style_2        # runs that exist already

A grid is a YAML file with options of train_hypernetwork.py, and under `grid:` lists of values; every combination is a
run. No account is needed. To resume, run the same command again: finished runs are not repeated. A run that fails does
not stop the others. The page is OUTPUT_DIR/compare.html, one self-contained file; compare.png is the same page as an
image, and compare.csv has the figures. First come the runs that no other beats in both prompt fidelity and style
distance; which of these is best, your eyes decide.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hypernet.cli.script import ScriptParser, check_output_folder, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import torch

from examples.comparison.grid import read_grid
from examples.comparison.page import write_page
from examples.comparison.previews import generate_previews
from examples.comparison.ranking import rank
from examples.comparison.results import read_result
from examples.comparison.runs import Run, Runner, train_all
from hypernet.cli.generation_options import parse_count
from hypernet.cli.option_notes import unquoted_note
from hypernet.formats.trained_folder import is_run_folder
from hypernet.training.run_folder import RunFolder
from hypernet.training.trackers import sync_command
from hypernet.utils.errors import UserError

GRID_OPTIONS = ("jobs", "dry_run", "overwrite")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse and check the options; `grid` becomes the YAML file, or None if `paths` are run folders.

    Raises:
        UserError: for options that do not go together.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path, help="a YAML file with a grid, or run folders")
    help = "default: output/NAME for NAME.yaml, or output/compared_runs"
    parser.add_argument("--output_dir", type=Path, help=help)
    parser.add_argument("--jobs", type=parse_count, help="runs to train at a time; default: one per GPU, or 1 on a CPU")
    help = "also report the first step at which a run's validation loss was this low"
    parser.add_argument("--reach", type=float, help=help)
    help = "prompts to generate, with [name] for each run's name; default: the previews' of the first run that has any"
    parser.add_argument("--prompt", nargs="+", help=help)
    help = "generate with at most this many runs, the front first; default: %(default)s"
    parser.add_argument("--max_previews", type=parse_count, default=12, help=help)
    parser.add_argument("--dry_run", action="store_true", help="only list the runs, and which of them are done")
    parser.add_argument("--overwrite", action="store_true", help="retrain runs whose options have changed")
    args = parser.parse_args(arguments)
    is_grid = args.paths[0].suffix.lower() in (".yaml", ".yml")
    if is_grid and len(args.paths) > 1:
        raise UserError(f"{args.paths[1]}: name a single YAML file, or only run folders")
    for option in () if is_grid else GRID_OPTIONS:
        if getattr(args, option):
            raise UserError(f"--{option}: it needs a YAML file with a grid; run folders are only compared, not trained")
    if note := unquoted_note("prompt", args.prompt or []):
        print(f"note: {note}", file=sys.stderr)
    args.grid = args.paths[0] if is_grid else None
    args.output_dir = args.output_dir or Path("output", args.grid.stem if is_grid else "compared_runs")
    return args


def find_runs(folders: list[Path]) -> list[Run]:
    """Return the runs in these folders, named after them.

    Raises:
        UserError: if one of the folders holds no run.
    """
    for folder in folders:
        if not is_run_folder(folder):
            raise UserError(f"{folder}: it holds no run; name folders that train_hypernetwork.py wrote, or a YAML file")
    names = [folder.resolve().name for folder in folders]
    return [Run(name if names.count(name) == 1 else str(folder), folder, {}) for name, folder in zip(names, folders)]


def check_run_folders(runs: list[Run], overwrite: bool) -> None:
    """Check that no run's folder holds another run, whose curves and images the page would show.

    Raises:
        UserError: if one does.
    """
    for run in runs:
        RunFolder(run.parse_config()).check(overwrite)


def list_runs(runs: list[Run], output_dir: Path) -> None:
    """Print the name of each run, and whether it is done."""
    runner = Runner(output_dir, jobs=1) if output_dir.exists() else None
    for run in runs:
        print(f"  {'done' if runner and runner.is_done(run) else 'to do':8}{run.name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then write the page.

    Raises:
        UserError: for a mistake in the options or the grid, or if a run has failed.
    """
    args = parse_arguments(arguments)
    failed: dict[str, str] = {}
    if args.grid:
        runs = read_grid(args.grid, args.output_dir)
        check_run_folders(runs, args.overwrite)
        names = [run.name for run in runs]
        print(f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(names[:8])}{', ...' * (len(names) > 8)}")
        if args.dry_run:
            list_runs(runs, args.output_dir)
            return
        check_output_folder(args.output_dir, f"--output_dir {args.output_dir}")
        failed = train_all(runs, args.output_dir, args.jobs or max(1, torch.cuda.device_count()), args.overwrite)
    else:
        runs = find_runs(args.paths)
        check_output_folder(args.output_dir, f"--output_dir {args.output_dir}")
    ranking = rank([read_result(run, failed.get(run.name), args.reach) for run in runs])
    title = args.grid.name if args.grid else f"{len(runs)} runs"
    html, png, table = write_page(ranking, None, args.output_dir, title)  # in case generating fails
    previews = generate_previews(ranking.results, runs, args.output_dir / "pictures", args.prompt, args.max_previews)
    if previews is not None:
        write_page(ranking, previews, args.output_dir, title)
    if command := sync_command([run.folder for run in runs]):
        print(f"W&B ran offline; after `wandb login`, upload the runs with: {command}")
    print(f"Open {html} ({png.name} is the same page as an image, {table.name} has the figures)")
    if failed:
        logs = args.output_dir / "logs"
        raise UserError(
            f"{len(failed)} of {len(runs)} runs failed; the page says why, and {logs} has their full output"
        )


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; finished runs are kept, and the same command resumes")
