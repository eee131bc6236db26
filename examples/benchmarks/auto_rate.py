#!/usr/bin/env python
"""Compare `--learning_rate auto` with the best of eleven constant learning rates over five decades.

    python examples/benchmarks/auto_rate.py --jobs 2                    # eight settings, an hour
    python examples/benchmarks/auto_rate.py --style_dir ink=my_drawings # with a third style: twelve
    python examples/benchmarks/auto_rate.py --all                       # all combinations instead of a third

A setting is a combination of a style, an activation, a structure and an optimizer. By default, a third of the
combinations is trained, in which each choice occurs equally often. The styles are those of artists whose emoji the
quickstart's model has not seen. The emoji are downloaded first, which needs npm and resvg-py. The search for the best
constant learning rate starts from the one that `auto` chooses, and continues as long as the validation loss falls. The
table also shows in how many of 24 samples the quickstart's classifier recognizes the subject of the prompt.
"""

import argparse
import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.generation_options import parse_count
from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ in ("__main__", "__mp_main__"):
    quiet_libraries()  # before diffusers is imported

from examples.benchmarks import short_runs
from examples.benchmarks.judging import judge_samples, pipeline_with
from examples.benchmarks.settings_study.settings import STYLES

ACTIVATIONS, STRUCTURES, OPTIMIZERS = ("linear", "relu", "swish"), ("1,2,1", "1,2,2,1"), ("AdamW", "AdamW8bit")
NEAR, SAMPLES = 1.05, 24


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

    def options(self, learning_rate: str) -> dict[str, object]:
        """Return the options of the run at a learning rate."""
        words = (self.activation, self.structure, self.optimizer, str(self.batch_size), learning_rate)
        options = {"activation": self.activation, "layer_structure": self.structure, "optimizer": self.optimizer}
        options |= {"train_batch_size": str(self.batch_size), "learning_rate": learning_rate}
        return short_runs.run_options(
            self.root, self.style, self.root / self.style / "_".join(words).replace(":", "x"), options
        )


@dataclasses.dataclass(frozen=True)
class Result:
    """The validation losses and shares of correct subjects of both, and the loss of the base model."""

    chosen: float
    auto_loss: float
    best: float
    best_loss: float
    base_loss: float
    auto_subjects: float
    best_subjects: float


def measure(setting: Setting, factor: str) -> Result:
    """Train with `--learning_rate auto`, and at constant learning rates until the best one is found."""
    auto = setting.options("auto" + factor)
    result = short_runs.train(auto)
    chosen = float(result["learning_rate"])
    best, best_loss = short_runs.find_best(
        lambda rate: short_runs.loss_of(short_runs.train(setting.options(f"{rate:.3g}"))), chosen
    )
    folders = [Path(str(each["output_dir"])) for each in (auto, setting.options(f"{best:.3g}"))]
    subjects = [judge_samples(pipeline_with(folder), setting.style, SAMPLES).subject for folder in folders]
    return Result(chosen, short_runs.loss_of(result), best, best_loss, result["val_loss_base"], *subjects)


def list_settings(root: Path, styles: list[str], batch_size: int, everything: bool) -> list[Setting]:
    """Return all settings, or a third of them that has each style, activation, structure and optimizer equally often."""
    kinds = (styles, ACTIVATIONS, STRUCTURES, OPTIMIZERS)
    places = itertools.product(*(range(len(kind)) for kind in kinds))
    chosen = [place for place in places if everything or sum(place) % 3 == 0]
    return [
        Setting(root, styles[style], ACTIVATIONS[activation], STRUCTURES[structure], OPTIMIZERS[optimizer], batch_size)
        for style, activation, structure, optimizer in chosen
    ]


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    short_runs.add_style_options(parser, list(STYLES[:2]))
    parser.add_argument("--all", action="store_true", help="all combinations")
    parser.add_argument("--train_batch_size", type=parse_count, default=4, help="default: %(default)s")
    parser.add_argument("--factor", default="", help='of "auto", such as ":0.5"')
    parser.add_argument("--output_dir", type=Path, default=Path("output/auto_rate"), help="default: %(default)s")
    parser.add_argument("--jobs", type=parse_count, default=1, help="settings at a time; default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    root = args.output_dir.resolve()
    styles = short_runs.write_styles(root, args.styles, args.style_dir)
    settings = list_settings(root, styles, args.train_batch_size, args.all)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))  # of the new processes
    columns = "chosen | loss | best constant | loss | ratio | correct subject | of the best | without a hypernetwork"
    print(f"{short_runs.STEPS} steps at batch size {args.train_batch_size}; loss: validation loss\n")
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
    print(f"at least as many correct subjects: {subjects} of {total}; better than without: {better} of {total}")


if __name__ == "__main__":
    run_script(main)
