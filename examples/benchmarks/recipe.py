#!/usr/bin/env python
"""Compare the recipe with the WebUI's defaults and with a LoRA of the same size, over equally many steps.

    python examples/benchmarks/recipe.py                                # four styles, five seeds; an hour and a half
    python examples/benchmarks/recipe.py --style_dir ink=my_drawings    # with a fifth style

The WebUI's defaults (linear, 1,2,1, normal initialization) and the LoRA are trained at the best of eleven constant
learning rates for each style, found with the first seed. The recipe finds its own (`--learning_rate auto`) and has the
divergence guard, which the others lack. For each of the three, the table shows the validation loss relative to the base
model's, and what is seen in 36 samples: the share in which the quickstart's classifier recognizes the subject of the
prompt, their style distance, and the share in the style if the classifier knows it. All figures are means over the
seeds.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.generation_options import parse_count
from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

from examples.benchmarks.judging import judge_samples, pipeline_with
from examples.benchmarks.lora_of_same_size import train_lora
from examples.benchmarks.settings_study.measure import SAMPLES, load_scores
from examples.benchmarks.settings_study.settings import STYLES
from examples.benchmarks.short_runs import STEPS, find_best, loss_of, run_options, train, write_styles

RECIPE = {"activation": "swish", "learning_rate": "auto", "random_flip": True, "snr_gamma": 1, "ema_decay": 0.98}
RECIPE |= {"guard": True, "validation_loss_steps": 50, "validation_guidance_scale": 4, "validation_inference_steps": 12}
START = 5e-4  # of the search for the best constant learning rate
Run = Callable[[dict[str, Any]], dict[str, Any]]


def measure(root: Path, style: str, kind: str, seeds: range) -> list[str]:
    """Train one of the three with each seed. Return its row of the table."""
    run: Run = train_lora if kind == "LoRA" else train

    def options(seed: int, **changed: Any) -> dict[str, Any]:
        own = RECIPE if kind == "recipe" else {}
        words = "_".join([kind.replace(" ", "_"), str(seed), *map(str, changed.values())])
        return run_options(root, style, root / style / words, {**own, "seed": seed, **changed})

    changed: dict[str, Any] = {}
    if kind != "recipe":
        best, _ = find_best(lambda rate: loss_of(run(options(seeds[0], learning_rate=f"{rate:.3g}"))), START)
        changed["learning_rate"] = f"{best:.3g}"
    losses, subjects, distances, styles, rates = [], [], [], [], set()
    for seed in seeds:
        result, folder = run(options(seed, **changed)), Path(options(seed, **changed)["output_dir"])
        seen = judge_samples(pipeline_with(folder), style, SAMPLES)
        losses.append(loss_of(result) / result["val_loss_base"])
        subjects.append(seen.subject)
        distances.append(load_scores(root / "data" / style).measure(seen.images)["style_distance"])
        styles += [] if seen.style is None else [seen.style]
        rates.add(float(changed.get("learning_rate") or result["learning_rate"]))
    deviation = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    return [
        f"{min(rates):.1e}" if len(rates) == 1 else f"{min(rates):.1e} to {max(rates):.1e}",
        f"{statistics.fmean(losses):.3f}{deviation}",
        f"{statistics.fmean(subjects):.0%}",
        f"{statistics.fmean(distances):.2f}",
        f"{statistics.fmean(styles):.0%}" if styles else "",
    ]


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    parser.add_argument("--style_dir", action="append", default=[], metavar="NAME=FOLDER", help="a further style")
    parser.add_argument("--styles", nargs="*", choices=STYLES, default=list(STYLES), help="default: all four")
    parser.add_argument("--seeds", type=parse_count, default=5, help="default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("output/recipe"), help="default: %(default)s")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    root = args.output_dir.resolve()
    print(f"{STEPS} steps at batch size 4, {args.seeds} seeds; loss relative to the base model's\n")
    columns = "learning rate | validation loss | correct subject | style distance | in the style"
    print(f"| style | | {columns} |\n|{' --- |' * 7}", flush=True)
    for style in write_styles(root, args.styles, args.style_dir):
        for kind in ("WebUI's defaults", "recipe", "LoRA"):
            print(f"| {style} | {kind} | {' | '.join(measure(root, style, kind, range(args.seeds)))} |", flush=True)


if __name__ == "__main__":
    run_script(main)
