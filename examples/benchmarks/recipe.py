#!/usr/bin/env python
"""Compare the recipe with the WebUI's defaults and with a LoRA of the same size, for the same number of steps.

    python examples/benchmarks/recipe.py                                # four styles, five seeds; an hour and a half
    python examples/benchmarks/recipe.py --style_dir ink=my_drawings --sheet recipe.jpg    # with a fifth style

The WebUI's defaults (linear, 1,2,1, normal initialization) and the LoRA are trained at the best of eleven constant
learning rates for each style, found with the first seed. The recipe is swish and `--learning_rate auto`. All of them
run without the divergence guard. The table shows the validation loss relative to the base model's, and what is seen in
36 samples: the share in which the quickstart's classifier recognizes the subject of the prompt, their style distance,
and the share in the style for styles that the classifier knows. All figures are means over the seeds. Runs are kept, so
the command can be stopped and run again. The sheet shows samples of the first seed.
"""

import argparse
import json
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

from PIL import Image

from examples.benchmarks import short_runs
from examples.benchmarks.judging import SAMPLING_STEPS, judge_samples, pipeline_with
from examples.benchmarks.lora_of_same_size import train_lora
from examples.benchmarks.settings_study.measure import SAMPLES, load_scores
from examples.benchmarks.settings_study.settings import STYLES
from examples.quickstart.tools.measure import MODEL, load_pipeline, prompt_scenes, sample
from examples.quickstart.tools.scenes import caption
from hypernet.utils.image_grid import labeled_grid

RECIPE = {"activation": "swish"}  # and --learning_rate auto
KINDS = ("WebUI's defaults", "recipe", "LoRA")
SHOWN = (24, 34)  # of the samples, on the sheet: a dog and a house
START = 5e-4  # of the search for the best constant learning rate
Run = Callable[[dict[str, Any]], dict[str, Any]]


def judge_run(folder: Path, style: str, data: Path) -> tuple[dict[str, float | None], list[Image.Image]]:
    """Return what is seen in samples of a run, and the samples to show. Both are kept in its folder."""
    figures, shown = folder / "judged.json", [folder / f"sample_{number}.png" for number in SHOWN]
    if not figures.exists():
        seen = judge_samples(pipeline_with(folder), style, SAMPLES)
        distance = load_scores(data).measure(seen.images)["style_distance"]
        for number, path in zip(SHOWN, shown):
            seen.images[number].save(path)
        values = {"subject": seen.subject, "style": seen.style, "style_distance": distance}
        figures.write_text(json.dumps(values), encoding="utf-8")
    return json.loads(figures.read_text(encoding="utf-8")), [Image.open(path) for path in shown]


def measure(root: Path, style: str, kind: str, seeds: range, learning_rate: str) -> tuple[list[str], list[Image.Image]]:
    """Train one of the kinds with each seed. Return its row of the table, and samples of the first seed."""
    run: Run = train_lora if kind == "LoRA" else short_runs.train

    def options(seed: int, **changed: Any) -> dict[str, Any]:
        own = RECIPE if kind == "recipe" else {}
        words = "_".join([kind, str(seed), *map(str, changed.values())]).replace(" ", "_").replace(":", "x")
        return short_runs.run_options(root, style, root / style / words, {**own, "seed": seed, **changed})

    changed: dict[str, Any] = {"learning_rate": learning_rate}
    if kind != "recipe":
        best, _ = short_runs.find_best(
            lambda rate: short_runs.loss_of(run(options(seeds[0], learning_rate=f"{rate:.3g}"))), START
        )
        changed["learning_rate"] = f"{best:.3g}"
    losses, judged, shown, rates = [], [], [], set()
    for seed in seeds:
        result, folder = run(options(seed, **changed)), Path(options(seed, **changed)["output_dir"])
        seen, images = judge_run(folder, style, root / "data" / style)
        judged.append(seen)
        shown = shown or images
        losses.append(short_runs.loss_of(result) / result["val_loss_base"])
        rates.add(float(result.get("learning_rate", changed["learning_rate"])))  # what auto has chosen
    deviation = f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else ""
    row = [
        f"{min(rates):.1e}" if len(rates) == 1 else f"{min(rates):.1e} to {max(rates):.1e}",
        f"{statistics.fmean(losses):.3f}{deviation}",
        f"{statistics.fmean(each['subject'] for each in judged):.0%}",
        f"{statistics.fmean(each['style_distance'] for each in judged):.2f}",
        "" if judged[0]["style"] is None else f"{statistics.fmean(each['style'] for each in judged):.0%}",
    ]
    return row, shown


def tile(images: list[Image.Image]) -> Image.Image:
    """Return images side by side."""
    row = Image.new("RGB", (sum(image.width for image in images), images[0].height))
    for number, image in enumerate(images):
        row.paste(image, (number * image.width, 0))
    return row


def save_sheet(root: Path, samples: dict[str, list[list[Image.Image]]], path: Path) -> None:
    """Save images of each style: its own, the base model's, and those of each kind."""
    scenes, pipeline = prompt_scenes(SAMPLES), load_pipeline(MODEL)
    plain = [
        sample(pipeline, [caption(scenes[number])], steps=SAMPLING_STEPS, seed=1000 + number)[0] for number in SHOWN
    ]
    rows = []
    for style, of_kinds in samples.items():
        own = sorted(path for path in (root / "data" / style / "held_out").iterdir() if path.suffix != ".txt")
        own_images = [Image.open(path).convert("RGB").resize(plain[0].size) for path in own[: len(SHOWN)]]
        rows.append([tile(images) for images in (own_images, plain, *of_kinds)])
    labeled_grid(rows, list(samples), ["the style", "without", *KINDS]).save(path, quality=90)


def parse_arguments() -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    short_runs.add_style_options(parser, list(STYLES))
    parser.add_argument("--seeds", type=parse_count, default=5, help="default: %(default)s")
    parser.add_argument("--output_dir", type=Path, default=Path("output/recipe"), help="default: %(default)s")
    parser.add_argument("--learning_rate", default="auto", help="of the recipe; default: %(default)s")
    parser.add_argument("--sheet", type=Path, help="write samples to this image")
    return parser.parse_args()


def main() -> None:
    args = parse_arguments()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    root = args.output_dir.resolve()
    print(f"{short_runs.STEPS} steps at batch size 4, {args.seeds} seeds; loss relative to the base model's\n")
    columns = "learning rate | validation loss | correct subject | style distance | in the style"
    print(f"| style | | {columns} |\n|{' --- |' * 7}", flush=True)
    samples: dict[str, list[list[Image.Image]]] = {}
    for style in short_runs.write_styles(root, args.styles, args.style_dir):
        for kind in KINDS:
            row, images = measure(root, style, kind, range(args.seeds), args.learning_rate)
            samples.setdefault(style, []).append(images)
            print(f"| {style} | {kind} | {' | '.join(row)} |", flush=True)
    if args.sheet:
        save_sheet(root, samples, args.sheet)


if __name__ == "__main__":
    run_script(main)
