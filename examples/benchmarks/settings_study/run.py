#!/usr/bin/env python
"""Measure the settings of a hypernetwork one at a time on the quickstart's model.

    python examples/benchmarks/settings_study/run.py --jobs 2      # train the runs missing from settings.csv
    python examples/benchmarks/settings_study/run.py --styles streamline-emojis --sections "learning rate"
    python examples/benchmarks/settings_study/run.py --style_dir ink=my_drawings --sections "learning rate"
    python examples/benchmarks/settings_study/run.py --write_page  # tables and plots of settings.md, from settings.csv
    python examples/benchmarks/settings_study/agreement.py         # do the measures agree with the classifier?

The style is an artist's hand that the model has not seen; its emoji are fetched at first, which needs npm and
resvg-py. Every setting has three seeds, the baseline six; settings.csv has two so far. Each run gives what it measures
itself (validation loss, style distance, prompt fidelity, score), and what the quickstart's classifier sees in samples:
how many are in the style, and how many show the subject of the prompt. Runs in settings.csv are not repeated, so the
command can be stopped and run again.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ in ("__main__", "__mp_main__"):  # the latter in processes that this script starts
    quiet_libraries()  # before diffusers is imported

import torch
from diffusers import UNet2DConditionModel

from examples.benchmarks.settings_study.measure import measure_run
from examples.benchmarks.settings_study.page import write_page
from examples.benchmarks.settings_study.rows import TABLE, Row, read_rows, write_rows
from examples.benchmarks.settings_study.settings import (
    BASELINE,
    BASELINE_SEEDS,
    MODEL,
    SECTIONS,
    SEEDS,
    STYLES,
    TRAIN_IMAGES,
    VALIDATION_IMAGES,
    StudyRun,
    unique_settings,
)
from examples.quickstart.tools.scenes import write_images
from examples.quickstart.tools.sets import SUBJECTS, find
from hypernet.cli.generation_options import parse_count
from hypernet.stable_diffusion.model_hash import weights_hash
from hypernet.utils.errors import UserError


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = ScriptParser(__doc__)
    styles = parser.add_mutually_exclusive_group()
    styles.add_argument("--styles", nargs="+", choices=STYLES, default=[STYLES[0]], help=f"default: {STYLES[0]}")
    styles.add_argument(
        "--style_dir", metavar="NAME=FOLDER", help="a style of your own: images, each with its caption in a .txt file"
    )
    seeds = [*SEEDS, *BASELINE_SEEDS]
    parser.add_argument("--seeds", nargs="+", type=int, choices=seeds, default=seeds, help="default: all")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--output_dir", type=Path, default=Path("output/settings"), help="default: %(default)s")
    parser.add_argument("--jobs", type=parse_count, default=1, help="runs to train at a time; default: %(default)s")
    parser.add_argument("--write_page", action="store_true", help="only write the page from settings.csv")
    args = parser.parse_args(arguments)
    if args.style_dir and not all(args.style_dir.partition("=")):
        parser.error(f"--style_dir {args.style_dir}: write NAME=FOLDER")
    return args


# --- Data


def write_data(data: Path, style: str, images: Path | None) -> None:
    """Write the images and captions of a style: some for validation to held_out, the others to images.

    The lists train_8.txt, train_32.txt and train_all.txt name the training images of the settings.

    Args:
        images: the folder of the style's images; None for an artist's emoji, each of another subject.

    Raises:
        UserError: if the emoji cannot be fetched or rendered, or there are too few images.
    """
    if (data / "done").exists():
        return
    if images is None:
        count = sum(find(subject, style) is not None for subject in SUBJECTS)
        held_out = write_images(data / "held_out", style, VALIDATION_IMAGES, seed=999)
        exclude = {scene.subject for scene in held_out}
        write_images(data / "images", style, count - VALIDATION_IMAGES, exclude=exclude)
    else:
        copy_images(images, data)
    paths = sorted(path.resolve() for path in (data / "images").iterdir() if path.suffix != ".txt")
    if len(paths) < TRAIN_IMAGES:
        needed = TRAIN_IMAGES + VALIDATION_IMAGES
        raise UserError(
            f"--style_dir {style}={images}: it has {len(paths)} images to train on; at least {needed} in all"
        )
    for number in (8, TRAIN_IMAGES, "all"):
        chosen = paths if number == "all" else paths[:number]
        (data / f"train_{number}.txt").write_text("".join(f"{path}\n" for path in chosen), encoding="utf-8")
    (data / "done").touch()


def copy_images(folder: Path, data: Path) -> None:
    """Copy images with a caption beside them, every fifth to held_out until there are enough, the others to images."""
    captions = sorted(folder.glob("*.txt"))
    for number, caption in enumerate(captions):
        is_held_out = number % 5 == 0 and number < 5 * VALIDATION_IMAGES
        target = data / ("held_out" if is_held_out else "images")
        target.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"{caption.stem}.*"):
            shutil.copy(path, target)


# --- Runs


@functools.cache
def identify_model() -> str:
    """Return the hash of the quickstart's UNet."""
    return weights_hash(UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet"), torch.float16)


def list_runs(root: Path, styles: Sequence[str], sections: Sequence[str], seeds: Sequence[int]) -> list[StudyRun]:
    """Return the runs of the study, seed by seed."""
    settings = unique_settings(sections)
    return [
        StudyRun(root, style, setting, seed)
        for seed in seeds
        for style in styles
        for setting in settings
        if seed in SEEDS or setting == BASELINE
    ]


def measure_all(runs: Sequence[StudyRun], jobs: int) -> Iterator[tuple[StudyRun, dict[str, float] | Exception]]:
    """Measure runs in `jobs` processes at a time, each with its share of the cores. Yield each with its figures."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # of the new processes
    waiting, active = iter(runs), {}
    with concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while True:
            while len(active) < jobs and (run := next(waiting, None)):  # no queue that could not be stopped
                active[pool.submit(measure_run, run)] = run
            if not active:
                return
            for future in concurrent.futures.wait(active, return_when=concurrent.futures.FIRST_COMPLETED).done:
                problem = future.exception()
                if problem is not None and not isinstance(problem, Exception):
                    raise problem  # Ctrl-C
                yield active.pop(future), problem or future.result()


def complete_table(runs: Sequence[StudyRun], jobs: int) -> None:
    """Measure the runs that settings.csv lacks, and add them.

    Raises:
        UserError: if it has runs of another model.
    """
    model, rows = identify_model(), read_rows()
    if any(row.model != model for row in rows):
        raise UserError(f"{TABLE}: it has runs of another model; move it away to start over")
    known = {row.key for row in rows}
    missing = [run for run in runs if Row(model, run.style, run.setting, run.seed, {}).key not in known]
    print(f"{len(runs) - len(missing)} of {len(runs)} runs are in {TABLE}", flush=True)
    started = time.monotonic()
    for number, (run, outcome) in enumerate(measure_all(missing, jobs), 1):
        remaining = len(missing) - number
        minutes = (time.monotonic() - started) / number * remaining / 60
        estimate = f" (about {minutes:.0f} min for the remaining {remaining})" if remaining else ""
        if isinstance(outcome, Exception):
            text = f"FAILED, {outcome or type(outcome).__name__}; run the command again to retry"
        else:
            rows.append(Row(model, run.style, run.setting, run.seed, outcome))
            write_rows(rows)
            text = ", ".join(f"{name} {value:.3g}" for name, value in outcome.items())
        print(f"[{number}/{len(missing)}] {run.style}, {run.name}: {text}{estimate}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and measure, unless only the page is wanted; then write the page."""
    args = parse_arguments(arguments)
    if not args.write_page:
        styles = dict.fromkeys(args.styles)
        if args.style_dir:
            name, _, folder = args.style_dir.partition("=")
            styles = {name: Path(folder)}
        for style, images in styles.items():
            write_data(args.output_dir / "data" / style, style, images)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # runs in progress are finished first
        complete_table(list_runs(args.output_dir, list(styles), args.sections, args.seeds), args.jobs)
    write_page(read_rows())


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; measured runs are in settings.csv, and the same command resumes")
