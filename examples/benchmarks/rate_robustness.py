#!/usr/bin/env python
"""Train the quickstart at eleven learning rates over five decades, with and without the divergence guard.

    python examples/benchmarks/rate_robustness.py            # half an hour
    python examples/benchmarks/rate_robustness.py -- --activation linear --clip_grad_mode none
    python examples/benchmarks/rate_robustness.py -- --train_data_dir my_images --template "[filewords]"

Prints what the file that each run exports comes to: the validation loss, the scores, and in how many of 24 samples the
quickstart's classifier sees the subject of the prompt and, if --name is a style that it knows, that style; also
the subjects of the run's best state.
"""

import csv
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script
from hypernet.cli.training_options import parse_config

GRID = [1e-3 * 10 ** (i / 2) for i in range(-5, 6)]  # of learning rates; the one in the middle is good for this model
SAMPLES = 24
COLUMNS = {
    "val_loss": "validation loss",
    "prompt_fidelity": "prompt fidelity",
    "style_distance": "style distance",
    "subject_share": "correct subject",
    "best_subject_share": "of the best state",
    "style_share": "in the style",
    "guard_returns": "rollbacks",
}
FLAGS = ["--validation_split=0.15", "--validation_loss_steps=50", "--validation_steps=100000"]
FLAGS += ["--validation_inference_steps=12", "--checkpointing_steps=100000", "--report_to=none"]


def train(work: Path, learning_rate: float, guard: bool, steps: int, flags: list[str]) -> dict[str, Any]:
    """Train in this process, without output. Return the figures of result.json, and what the classifier sees."""
    from examples.benchmarks.quiet_training import train_quietly  # after --help, since it loads torch

    output = work / f"{learning_rate:.2g}-{guard}"
    options = ["--config=examples/configs/quickstart.yaml", f"--output_dir={output}", f"--cache_dir={work / 'cache'}"]
    options += [f"--learning_rate={learning_rate:.3g}", f"--max_train_steps={steps}", f"--guard={guard}"]
    options += [*FLAGS, *flags]
    outcome, style = train_quietly(options, scored=True), str(parse_config(options).name)
    seen = judge_state(output, style)
    best = seen if outcome["val_loss"] == outcome["best_val_loss"] else judge_state(output / "best", style)
    return {"style": style, **outcome, **seen, "best_subject_share": best["subject_share"]}


def judge_state(folder: Path, style: str) -> dict[str, float | None]:
    """Return the shares of samples that show the subject of the prompt, and that are in the style, if it is known."""
    from examples.benchmarks.judging import judge_samples, pipeline_with

    judged = judge_samples(pipeline_with(folder), style, SAMPLES)
    return {"subject_share": judged.subject, "style_share": judged.style}


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--steps", type=int, default=150, help="of each run; default: %(default)s")
    parser.add_argument("--guard_only", action="store_true", help="leave out the runs without the guard")
    parser.add_argument("--csv", type=Path, help="write the figures to this file, too")
    parser.add_argument("flags", nargs="*", help="more training options, after --")
    args = parser.parse_args()
    quiet_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args.csv = args.csv and args.csv.resolve()
    os.chdir(REPO)  # the preset's paths are relative to it
    kinds = (True,) if args.guard_only else (False, True)
    print(f"{args.steps} steps of the quickstart at a constant learning rate\n")
    print(f"| learning rate | guard | {' | '.join(COLUMNS.values())} |\n|{' --- |' * (2 + len(COLUMNS))}", flush=True)
    rows, ruined = [], dict.fromkeys(kinds, 0)
    with tempfile.TemporaryDirectory() as work:
        for learning_rate in GRID:
            for guard in kinds:
                run = train(Path(work), learning_rate, guard, args.steps, args.flags)
                ruined[guard] += run["subject_share"] < run["best_subject_share"] / 2
                cells = [f"{run[name]:.3g}" if run.get(name) is not None else "" for name in COLUMNS]
                print(f"| {learning_rate:.2g} | {'yes' if guard else 'no'} | {' | '.join(cells)} |", flush=True)
                figures = {name: run.get(name) for name in ("style", *COLUMNS)}
                rows.append({"learning_rate": learning_rate, "guard": guard, **figures})
    for guard, count in ruined.items():
        ending = "fewer than half as many correct subjects as their best state has"
        print(f"\n{count} of {len(GRID)} runs {'with' if guard else 'without'} the guard end with {ending}", end="")
    print()
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    run_script(main)
