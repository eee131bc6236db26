#!/usr/bin/env python
"""Compare `--learning_rate auto` with the best of eleven constant learning rates over five decades.

    python examples/benchmarks/auto_rate.py --jobs 2                    # twelve settings, an hour
    python examples/benchmarks/auto_rate.py --all                       # all 36
    python examples/benchmarks/auto_rate.py --style_dir ink=my_drawings # instead of one of the hands

A setting is a style, an activation, a structure and an optimizer; the twelve have each of them equally often. The
styles are artists' hands that the quickstart's model has not seen; their emoji are fetched at first, which needs npm
and resvg-py. The best constant learning rate is searched outward from the one that is chosen, as long as the validation
loss falls. Beside it: in how many of 24 samples the quickstart's classifier sees the subject of the prompt.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import itertools
import json
import math
import multiprocessing
import os
import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.benchmarks.rate_robustness import LEARNING_RATE, judge_samples
from hypernet.cli.generation_options import parse_count
from hypernet.cli.script import ScriptParser, quiet_libraries, run_script
from hypernet.cli.training_options import options_to_flags, parse_config

if __name__ in ("__main__", "__mp_main__"):
    quiet_libraries()  # before diffusers is imported

from examples.benchmarks.settings_study.run import write_data
from examples.benchmarks.settings_study.settings import MODEL, STYLES, TRAIN_IMAGES

GRID = [LEARNING_RATE * 10 ** (i / 2) for i in range(-5, 6)]
ACTIVATIONS, STRUCTURES, OPTIMIZERS = ("linear", "relu", "swish"), ("1,2,1", "1,2,2,1"), ("AdamW", "AdamW8bit")
STEPS, NEAR = 150, 1.05


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained; `root` is the folder for everything."""

    root: Path
    style: str
    activation: str
    structure: str
    optimizer: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.style} | {self.activation} | {self.structure} | {self.optimizer}"

    def train(self, learning_rate: str) -> tuple[Path, float]:
        """Train in this process, without output. Return the run's folder and its validation loss."""
        from accelerate.state import AcceleratorState

        import train_hypernetwork
        from hypernet.training import setup

        data = self.root / "data" / self.style
        words = (self.activation, self.structure, self.optimizer, str(self.batch_size), learning_rate)
        folder = self.root / self.style / "_".join(words).replace(":", "x")
        options = {
            "pretrained_model_name_or_path": str(MODEL),
            "train_data_dir": str(data / f"train_{TRAIN_IMAGES}.txt"),
            "validation_data_dir": str(data / "held_out"),
            "cache_dir": str(self.root / "cache"),
            "output_dir": str(folder),
            "name": self.style,
            "resolution": 128,
            "activation": self.activation,
            "layer_structure": self.structure,
            "optimizer": self.optimizer,
            "train_batch_size": self.batch_size,
            "learning_rate": learning_rate,
            "max_train_steps": STEPS,
            "validation_loss_steps": STEPS,
            "checkpointing_steps": STEPS,
            "guard": False,
            "report_to": "none",
        }
        AcceleratorState._reset_state(True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            with mock.patch.object(setup, "prepare_scores", lambda *_: None):  # takes longer than the training
                train_hypernetwork.main(parse_config(options_to_flags(options)))
        loss = json.loads((folder / "result.json").read_text(encoding="utf-8"))["val_loss"]
        return folder, math.inf if loss is None else loss


@dataclasses.dataclass(frozen=True)
class Result:
    """The validation losses and shares of right subjects of both, and the loss of the base model."""

    chosen: float
    auto_loss: float
    best: float
    best_loss: float
    base_loss: float
    auto_subjects: float
    best_subjects: float


def measure(setting: Setting, factor: str) -> Result:
    """Train with `--learning_rate auto`, and at constant learning rates until the best one is found."""
    auto, auto_loss = setting.train("auto" + factor)
    record = json.loads((auto / "run.json").read_text(encoding="utf-8"))
    chosen = record["tested_learning_rate"] * float(factor[1:] or 1)
    losses: dict[int, float] = {}

    def loss_at(number: int) -> float:
        if not 0 <= number < len(GRID):
            return math.inf
        if number not in losses:
            losses[number] = setting.train(f"{GRID[number]:.3g}")[1]
        return losses[number]

    best = min(range(len(GRID)), key=lambda number: abs(math.log(GRID[number] / chosen)))
    while (nearby := min((best - 1, best + 1), key=loss_at)) != best and loss_at(nearby) < loss_at(best):
        best = nearby
    base_loss = json.loads((auto / "result.json").read_text(encoding="utf-8"))["val_loss_base"]
    folder, best_loss = setting.train(f"{GRID[best]:.3g}")  # it is finished, so nothing is trained
    subjects = [judge_samples(each, setting.style)["subject_share"] or 0.0 for each in (auto, folder)]
    return Result(chosen, auto_loss, GRID[best], best_loss, base_loss, *subjects)


def list_settings(root: Path, styles: list[str], batch_size: int, everything: bool) -> list[Setting]:
    """Return all settings, or a third of them that has each style, activation, structure and optimizer equally often."""
    kinds = (styles, ACTIVATIONS, STRUCTURES, OPTIMIZERS)
    places = itertools.product(*(range(len(kind)) for kind in kinds))
    chosen = [place for place in places if everything or sum(place) % 3 == 0]
    return [Setting(root, *(kind[i] for kind, i in zip(kinds, place)), batch_size) for place in chosen]


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--all", action="store_true", help="all 36 settings")
    parser.add_argument("--style_dir", action="append", default=[], metavar="NAME=FOLDER", help="a further style")
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=list(STYLES), help="default: both hands")
    parser.add_argument("--train_batch_size", type=parse_count, default=4, help="default: %(default)s")
    parser.add_argument("--factor", default="", help='of "auto", such as ":0.5"')
    parser.add_argument("--output_dir", type=Path, default=Path("output/auto_rate"), help="default: %(default)s")
    parser.add_argument("--jobs", type=parse_count, default=1, help="settings at a time; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    styles: dict[str, Path | None] = dict.fromkeys(args.styles)
    for text in args.style_dir:
        name, _, folder = text.partition("=")
        styles[name] = Path(folder)
    for style, images in styles.items():
        write_data(args.output_dir / "data" / style, style, images)
    settings = list_settings(args.output_dir.resolve(), list(styles), args.train_batch_size, args.all)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))  # of the new processes
    columns = "chosen | loss | best constant | loss | ratio | subject right | of the best | without a hypernetwork"
    print(f"{STEPS} steps at batch size {args.train_batch_size}; loss: validation loss\n")
    print(f"| style | activation | structure | optimizer | {columns} |\n|{' --- |' * 12}", flush=True)
    near = subjects = better = 0
    with concurrent.futures.ProcessPoolExecutor(args.jobs, multiprocessing.get_context("spawn")) as pool:
        for setting, each in zip(settings, pool.map(measure, settings, itertools.repeat(args.factor))):
            near += each.auto_loss <= NEAR * each.best_loss
            subjects += each.auto_subjects >= each.best_subjects
            better += each.auto_loss < each.base_loss
            cells = [f"{each.chosen:.2g}", f"{each.auto_loss:.4f}", f"{each.best:.2g}", f"{each.best_loss:.4f}"]
            cells += [f"{each.auto_loss / each.best_loss:.3f}", f"{each.auto_subjects:.0%}"]
            cells += [f"{each.best_subjects:.0%}", f"{each.base_loss:.4f}"]
            print(f"| {setting} | {' | '.join(cells)} |", flush=True)
    total = len(settings)
    print(f"\nwithin {NEAR - 1:.0%} of the best constant learning rate: {near} of {total}")
    print(f"at least as many subjects right: {subjects} of {total}; better than without: {better} of {total}")


if __name__ == "__main__":
    run_script(main)
