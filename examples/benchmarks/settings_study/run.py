#!/usr/bin/env python
"""Measure the settings of a hypernetwork one at a time on the quickstart's model.

    python examples/benchmarks/settings_study/run.py                       # train the runs missing from settings.csv
    python examples/benchmarks/settings_study/run.py --seeds 0 --styles openmoji
    python examples/benchmarks/settings_study/run.py --times               # time a step of each setting: timing.csv
    python examples/benchmarks/settings_study/run.py --write_page          # tables and plots of settings.md, from both

There are two styles, the hands of two artists, and three seeds (nine for the baseline). The artists' emoji are fetched
at first, which needs npm and resvg-py. Runs are trained as examples/compare.py trains them. Those in settings.csv are
not repeated, so the command can be stopped and run again. Each run gives its validation loss, the step at which 3% of
the base model's loss was gone, and what the quickstart's classifier sees in 48 samples: how many are in the style, and
how many show the subject of the prompt. settings.md shows an earlier model's figures until all runs of today's are
there.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import math
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import torch
import yaml
from diffusers import StableDiffusionPipeline, UNet2DConditionModel

import hypernet
from examples.benchmarks.settings_study.lora import train_lora
from examples.benchmarks.settings_study.page import write_page
from examples.benchmarks.settings_study.rows import TABLE, find_reached, read_rows, rows_of_one_model, write_rows
from examples.benchmarks.settings_study.timing import PLAIN, measure_settings, write_times
from examples.comparison.grid import read_grid
from examples.comparison.results import read_result
from examples.comparison.runs import Run, train_all
from examples.quickstart.tools.classifier import Classifier, judge, load_classifier
from examples.quickstart.tools.measure import load_pipeline, prompt_scenes, sample, share_right
from examples.quickstart.tools.scenes import caption, write_images
from hypernet.cli.generation_options import parse_count
from hypernet.stable_diffusion.model_hash import weights_hash
from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.errors import UserError

MODEL = REPO / "examples" / "quickstart" / "model"
STYLES = ("openmoji", "streamline-emojis")
SAMPLES, SAMPLING_STEPS = 48, 12

# The baseline; each section overrides some of it
BASE: dict[str, Any] = {
    "pretrained_model_name_or_path": str(MODEL),
    "resolution": 128,
    "train_batch_size": 4,
    **PLAIN,
    "learning_rate": "3e-3",
    "max_train_steps": 150,
    "validation_loss_steps": 25,
    "checkpointing_steps": 150,
    "guard": False,  # it would rescue bad settings
    "report_to": "none",
}
ACTIVATIONS = ["linear", "relu", "leakyrelu", "elu", "swish", "mish", "softsign", "tanh"]
STRUCTURES = ["1,2,1", "1,2,2,1", "1,4,1", "1,1.5,1.5,1", "1,2,3,2,1", "1,2,2,2,1"]
STRUCTURES += ["1,0.75,0.5,0.5,0.5,0.75,1", "1,0.5,1"]
SEEDS, BASELINE_SEEDS = [0, 1, 2], [3, 4, 5, 6, 7, 8]  # the latter only for the baseline: every comparison rests on it
LEARNING_RATES = ["3e-5", "3e-4", "3e-3", "3e-2", "3e-1"]
INITS = ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zero"]
UNET = UNet2DConditionModel.load_config(MODEL, subfolder="unet")
TEXT_WIDTH = UNET["cross_attention_dim"]
OTHER_WIDTHS = [width for width in UNET["block_out_channels"] if width != TEXT_WIDTH]
SECTIONS: dict[str, dict[str, list]] = {
    "rate": {"activation": ACTIVATIONS, "learning_rate": LEARNING_RATES},  # includes the baseline
    "baseline": {"activation": ["swish"], "learning_rate": ["3e-3"], "seed": BASELINE_SEEDS},
    "structure": {"layer_structure": STRUCTURES[1:]},
    "layer norm": {"layer_norm": [True], "layer_norm_init": ["ones", "normal"]},
    "dropout": {"dropout_structure": ["0,0.1,0", "0,0.3,0"]},
    "initialisation": {"weight_init": INITS},
    "widths": {"widths": [str(TEXT_WIDTH), ",".join(map(str, OTHER_WIDTHS))]},
    "latents": {"latent_sampling": ["once", "random"]},
    "tags": {"shuffle_tags": [False, True]},  # captions are tags, those of the validation images too
    "lora": {"learning_rate": ["1e-3", "3e-3", "1e-2"]},  # trained by lora.py
}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options."""
    parser = ScriptParser(__doc__)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES), help="default: both")
    seeds = SEEDS + BASELINE_SEEDS
    parser.add_argument("--seeds", nargs="+", type=int, choices=seeds, default=seeds, help="default: all")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--output_dir", type=Path, default=Path("output/settings"), help="default: %(default)s")
    parser.add_argument("--jobs", type=parse_count, default=1, help="runs to train at a time; default: %(default)s")
    parser.add_argument("--times", action="store_true", help="only time a step of each setting, and write the page")
    parser.add_argument(
        "--write_page", action="store_true", help="only write the page from settings.csv and timing.csv"
    )
    return parser.parse_args(arguments)


# --- Data


def write_data(folder: Path, style: str) -> None:
    """Write 32 training images in a style, and 8 of other subjects for validation; both also with tags as captions.

    Raises:
        UserError: if the emoji cannot be fetched or rendered.
    """
    if (folder / "done").exists():
        return
    try:
        scenes = {"images": write_images(folder / "images", style)}
        subjects = {scene.subject for scene in scenes["images"]}
        scenes["held_out"] = write_images(folder / "held_out", style, 8, seed=999, exclude=subjects)
    except UserError as error:
        raise UserError(f"--styles {style}: {error}") from None
    rng = random.Random(0)
    for name, drawn in scenes.items():
        tagged = shutil.copytree(folder / name, folder / f"{name}_tags", dirs_exist_ok=True)
        for path, scene in zip(sorted(tagged.glob("*.txt")), drawn, strict=True):
            tags = [tag for tag in (scene.size, scene.subject, f"{scene.background} background") if tag]
            rng.shuffle(tags)
            path.write_text(", ".join(tags) + "\n", encoding="utf-8")
    (folder / "done").touch()


# --- Runs


def section_runs(folder: Path, style: str, section: str) -> list[Run]:
    """Return the runs of a section, from a grid that compare.py accepts too: FOLDER/STYLE_SECTION.yaml."""
    data, suffix = folder / "data" / style, "_tags" if section == "tags" else ""
    name = section_name(style, section)
    entries = {
        **BASE,
        "train_data_dir": str(data / f"images{suffix}"),
        "name": style,
        "validation_data_dir": str(data / f"held_out{suffix}"),
        "cache_dir": str(folder / "cache"),
        "grid": {"seed": SEEDS, **SECTIONS[section]},
    }
    with atomic_write(folder / f"{name}.yaml") as temporary:
        temporary.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return read_grid(folder / f"{name}.yaml", folder / name)


@functools.cache
def identify_model() -> str:
    """Return the hash of the quickstart's UNet, under which its rows stand in settings.csv."""
    return weights_hash(UNet2DConditionModel.from_pretrained(MODEL, subfolder="unet"), torch.float16)


def section_name(style: str, section: str) -> str:
    """Return the name of a section's grid and folder."""
    return f"{style}_{section.replace(' ', '_')}"


def count_runs() -> int:
    """Return the number of runs of the whole study."""
    grids = ({"seed": SEEDS, **grid} for grid in SECTIONS.values())
    return len(STYLES) * sum(math.prod(map(len, grid.values())) for grid in grids)


def one_run_per_setting(folder: Path) -> list[Run]:
    """Return a run of one style and seed for each setting of a hypernetwork."""
    runs = [run for section in SECTIONS if section != "lora" for run in section_runs(folder, STYLES[0], section)]
    return [run for run in runs if run.options["seed"] == SEEDS[0]]


def judge_samples(pipeline: StableDiffusionPipeline, classifier: Classifier, style: str) -> dict[str, float]:
    """Return what the classifier sees in samples of the pipeline: the shares in the style, and of the right subject."""
    scenes = prompt_scenes(SAMPLES)
    seen = judge(classifier, sample(pipeline, [caption(scene) for scene in scenes], steps=SAMPLING_STEPS))
    return {
        "style_share": share_right(seen["hand"], [style] * SAMPLES),
        "subject_share": share_right(seen["subject"], [scene.subject for scene in scenes]),
    }


def measure_run(run: Run, pipeline: StableDiffusionPipeline, classifier: Classifier, style: str) -> dict[str, Any]:
    """Return the figures of a finished run, by column of settings.csv."""
    result = read_result(run, None)
    figures: dict[str, Any] = {
        "val_loss": result.val_loss,
        "val_loss_base": result.val_loss_base,
        "file_bytes": result.file_bytes,
        **find_reached(result.val_losses, result.val_loss_base),
    }
    if result.problem is None:
        hypernet.attach(pipeline.unet, hypernet.load(run.folder))
        figures |= judge_samples(pipeline, classifier, style)
        hypernet.detach(pipeline.unet)
    return figures


def complete_section(output_dir: Path, jobs: int, style: str, section: str, seed: int) -> int:
    """Train and measure the runs of a section that settings.csv lacks, and add them. Return their number."""
    model = identify_model()
    known = {(row["model"], row["style"], row["section"], row["run"]) for row in read_rows()}
    runs = [run for run in section_runs(output_dir, style, section) if run.options["seed"] == seed]
    runs = [run for run in runs if (model, style, section, run.name) not in known]
    if not runs:
        return 0
    print(f"{style}, {section}, seed {seed}: {len(runs)} runs", flush=True)
    failed = {} if section == "lora" else train_all(runs, output_dir / section_name(style, section), jobs)
    pipeline, classifier = load_pipeline(MODEL), load_classifier()
    for run in runs:
        if run.name in failed:
            print(f"{run.name}: {failed[run.name]}; run the command again to retry")
            continue
        with contextlib.redirect_stderr(io.StringIO()):  # hides progress bars
            if section == "lora":
                figures = train_lora(run.options, run.folder)
                pipeline.load_lora_weights(run.folder)
                figures |= judge_samples(pipeline, classifier, style)
                pipeline.unload_lora_weights()
            else:
                figures = measure_run(run, pipeline, classifier, style)
        options = {key: run.options[key] for key in SECTIONS[section] if key != "seed"}
        row = {"model": model, "section": section, "style": style, "run": run.name, "seed": seed}
        write_rows([*read_rows(), {**row, "options": json.dumps(options), **figures}])
    return len(runs)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, time or neither, then write the page."""
    args = parse_arguments(arguments)
    if args.times:
        settings = [run.options for run in one_run_per_setting(args.output_dir)]
        ratios = measure_settings(settings, BASE["train_batch_size"], BASE["resolution"])
        write_times(ratios, identify_model())
    elif not args.write_page:
        for style in args.styles:
            write_data(args.output_dir / "data" / style, style)
        parts = itertools.product(args.seeds, args.styles, args.sections)
        counts = [complete_section(args.output_dir, args.jobs, style, section, seed) for seed, style, section in parts]
        if not sum(counts):
            print(f"{TABLE} has all these runs; to repeat them, move it away")
    write_results()


def write_results() -> None:
    """Write the page from the runs of today's model, or from those of an earlier one until today's are complete."""
    model, count, rows = identify_model(), count_runs(), read_rows()
    own = sum(row["model"] == model for row in rows)
    if own < count:
        print(
            f"{TABLE} has {own} of the {count} runs of today's model; earlier figures stay on the page until it has all"
        )
    rows = sorted(rows_of_one_model(rows, model, count), key=lambda row: list(SECTIONS).index(row["section"]))
    if rows:
        write_page(rows, {name: BASE[name] for name in SECTIONS["rate"]}, model)


if __name__ == "__main__":
    run_script(main, when_stopped="stopped; measured runs are in settings.csv, and the same command resumes")
