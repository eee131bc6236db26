#!/usr/bin/env python
"""Measure what the settings of a hypernetwork are worth, one at a time, on the quickstart's model; writes settings.csv.

    python examples/benchmarks/settings_study/run.py                       # what is missing of two styles and three seeds (the baseline: nine)
    python examples/benchmarks/settings_study/run.py --seeds 0 --styles neon
    python examples/benchmarks/settings_study/run.py --times               # only what a step costs, side by side; settings_time.csv
    python examples/benchmarks/settings_study/run.py --write_page          # the tables and plots of settings.md, from the two files

Every run is made as examples/compare.py makes it; what is in settings.csv already is not measured again, so the command
can be stopped and goes on. From the same runs come held-out loss, the step at which half of the loss was gone, and what
the quickstart's classifier sees in 24 samples: how many are in the style, and how many show what the prompt says.
"""

import contextlib
import io
import itertools
import json
import random
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import yaml

import hypernet
from examples.benchmarks.settings_study.lora import train_lora
from examples.benchmarks.settings_study.page import write_page
from examples.benchmarks.settings_study.rows import TABLE, read_rows, write_rows
from examples.benchmarks.settings_study.timing import PLAIN, measure_settings, write_times
from examples.comparison.grid import read_grid
from examples.comparison.results import read_result
from examples.comparison.runs import Run, run_all
from examples.quickstart.tools.classifier import judge, load_classifier
from examples.quickstart.tools.draw import SUBJECTS, write_images
from examples.quickstart.tools.measure import load_pipeline, matches, prompt_scenes, sample, share
from hypernet.cli.generation_options import parse_count
from hypernet.cli.script import ScriptParser, run_script
from hypernet.utils.atomic_files import atomic_write

MODEL = REPO / "examples" / "quickstart" / "model"
STYLES = ("neon", "sunset")
SAMPLES, SAMPLING_STEPS = 2 * len(SUBJECTS), 12

# What all runs share; what a section says replaces it
BASE = {
    "pretrained_model_name_or_path": str(MODEL),
    "resolution": 128,
    "train_batch_size": 4,
    **PLAIN,
    "learning_rate": "3e-3",
    "max_train_steps": 150,
    "validation_loss_steps": 25,
    "checkpointing_steps": 150,
    "guard": False,  # or a bad setting would be mended
    "report_to": "none",
}
ACTIVATIONS = ["linear", "relu", "leakyrelu", "elu", "swish", "mish", "softsign", "tanh"]
STRUCTURES = ["1,2,1", "1,2,2,1", "1,4,1", "1,1.5,1.5,1", "1,2,3,2,1", "1,2,2,2,1"]
STRUCTURES += ["1,0.75,0.5,0.5,0.5,0.75,1", "1,0.5,1"]
SEEDS, MORE_SEEDS = [0, 1, 2], [3, 4, 5, 6, 7, 8]  # the latter for the baseline, which all others lean on
RATES = ["3e-5", "3e-4", "3e-3", "3e-2", "3e-1"]
INITS = ["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zero"]
SECTIONS = {
    "rate": {"activation": ACTIVATIONS, "learning_rate": RATES},  # (the baseline is one of these)
    "baseline": {"activation": ["swish"], "learning_rate": ["3e-3"], "seed": MORE_SEEDS},
    "structure": {"layer_structure": STRUCTURES[1:]},
    "layer norm": {"layer_norm": [True], "layer_norm_init": ["ones", "normal"]},
    "dropout": {"dropout_structure": ["0,0.1,0", "0,0.3,0"]},
    "initialisation": {"weight_init": INITS},
    "widths": {"widths": ["80", "48,96,128"]},
    "latents": {"latent_sampling": ["once", "random"]},
    "tags": {"shuffle_tags": [False, True]},  # with tags for captions, of the held-out pictures, too
    "lora": {"learning_rate": ["1e-3", "3e-3", "1e-2"]},  # trained by settings_lora.py
}


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES), help="default: both")
    seeds = SEEDS + MORE_SEEDS
    parser.add_argument("--seeds", nargs="+", type=int, choices=seeds, default=seeds, help="default: all")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="default: all")
    parser.add_argument("--output_dir", type=Path, default=Path("output/settings"), help="default: %(default)s")
    parser.add_argument("--jobs", type=parse_count, default=1, help="runs at a time; default: %(default)s")
    parser.add_argument("--times", action="store_true", help="train nothing; measure what a step of each setting costs")
    parser.add_argument("--write_page", action="store_true", help="train nothing; write the page from settings.csv")
    return parser.parse_args(arguments)


# --- Data


def draw_data(folder: Path, style: str):
    """32 pictures to train on and 8 others; of both a copy with tags as captions."""
    if (folder / "done").exists():
        return
    for name, count, seed in (("images", 32, 32), ("held_out", 8, 999)):
        write_images(folder / name, style, count, seed)
        write_images(folder / f"{name}_tags", style, count, seed)
        rng = random.Random(seed)
        for path in sorted((folder / f"{name}_tags").glob("*.txt")):
            words = path.read_text().split()
            scene, background = " ".join(words[1:-4]), words[-2]
            tags = [*scene.split(), f"{background} background"]
            rng.shuffle(tags)
            path.write_text(", ".join(tags) + "\n", encoding="utf-8")
    (folder / "done").touch()


# --- Runs


def open_section(folder: Path, style: str, section: str) -> list[Run]:
    """The runs of a section, from a file that compare.py takes, too: output/settings/STYLE_SECTION.yaml."""
    data, captions = folder / "data" / style, "_tags" if section == "tags" else ""
    grid, name = {"seed": SEEDS, **SECTIONS[section]}, file_name(style, section)
    shared = {"train_data_dir": str(data / f"images{captions}"), "name": style}
    shared["validation_data_dir"] = str(data / f"held_out{captions}")
    with atomic_write(folder / f"{name}.yaml") as temporary:
        entries = {**BASE, **shared, "cache_dir": str(folder / "cache"), "grid": grid}
        temporary.write_text(yaml.safe_dump(entries, sort_keys=False), encoding="utf-8")
    return read_grid(folder / f"{name}.yaml", folder / name)


def every_setting(folder: Path) -> list[Run]:
    """One run for each setting of a hypernetwork."""
    runs = [run for section in SECTIONS if section != "lora" for run in open_section(folder, STYLES[0], section)]
    return [run for run in runs if run.options["seed"] == SEEDS[0]]


def look(pipeline, classifier, style: str) -> dict[str, float]:
    """What the classifier sees in samples of the pipeline as it is."""
    scenes = prompt_scenes(SAMPLES)
    seen = judge(classifier, sample(pipeline, scenes, steps=SAMPLING_STEPS))
    return {
        "style_share": share(each == style for each in seen["style"]),
        "subject_share": share(matches(scenes, seen, "subject")),
    }


def measure(run: Run, pipeline, classifier, style: str) -> dict:
    """The row of a finished run."""
    result = read_result(run, None)
    row = {"val_loss": result.val_loss, "val_loss_base": result.val_loss_base, "file_bytes": result.file_bytes}
    half = 0.5 * result.val_loss_base if result.val_loss_base else 0.0
    row["half_at_step"] = next((step for step, loss in result.held_out if loss <= half), None)
    if result.problem is None:
        hypernet.attach(pipeline.unet, hypernet.load(run.folder))
        row |= look(pipeline, classifier, style)
        hypernet.detach(pipeline.unet)
    return row


def make_section(args, style: str, section: str, seed: int) -> int:
    """Train and measure what is missing of a section, and write it down; how many runs that were."""
    known = {(row["style"], row["section"], row["run"]) for row in read_rows()}
    runs = [run for run in open_section(args.output_dir, style, section) if run.options["seed"] == seed]
    runs = [run for run in runs if (style, section, run.name) not in known]
    if not runs:
        return 0
    print(f"{style}, {section}, seed {seed}: {len(runs)} runs", flush=True)
    failed = {} if section == "lora" else run_all(runs, args.output_dir / file_name(style, section), args.jobs)
    pipeline, classifier = load_pipeline(MODEL), load_classifier()
    for run in runs:
        if run.name in failed:
            print(f"{run.name}: {failed[run.name]}; it is tried again the next time")
            continue
        with contextlib.redirect_stderr(io.StringIO()):  # (bars of what takes a blink)
            if section == "lora":
                row = train_lora(run.options, run.folder)
                pipeline.load_lora_weights(run.folder)
                row |= look(pipeline, classifier, style)
                pipeline.unload_lora_weights()
            else:
                row = measure(run, pipeline, classifier, style)
        options = {key: run.options[key] for key in SECTIONS[section] if key != "seed"}
        about = {"section": section, "style": style, "run": run.name, "seed": seed, "options": json.dumps(options)}
        write_rows([*read_rows(), {**about, **row}])
    return len(runs)


def file_name(style: str, section: str) -> str:
    return f"{style}_{section.replace(' ', '_')}"


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.times:
        settings = [run.options for run in every_setting(args.output_dir)]
        write_times(measure_settings(settings, BASE["train_batch_size"], BASE["resolution"]))
    elif not args.write_page:
        for style in args.styles:
            draw_data(args.output_dir / "data" / style, style)
        places = itertools.product(args.seeds, args.styles, args.sections)
        if not sum(make_section(args, style, section, seed) for seed, style, section in places):
            print(f"all these runs are in {TABLE} already; to make them anew, move it away")
    rows = sorted(read_rows(), key=lambda row: list(SECTIONS).index(row["section"]))
    write_page(rows, {name: BASE[name] for name in SECTIONS["rate"]})


if __name__ == "__main__":
    run_script(
        main, when_stopped="stopped; what is measured is in settings.csv, and the same command goes on from here"
    )
