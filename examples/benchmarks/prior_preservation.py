#!/usr/bin/env python
"""Measure what --prior_weight preserves and costs, compared with applying a hypernetwork at a lower strength.

    python examples/benchmarks/prior_preservation.py                # a quarter of an hour
    python examples/benchmarks/prior_preservation.py -- --max_train_steps 800 --learning_rate 1e-3

Trains the quickstart with a template that adds words to the captions, and prints in how many of 96 samples the
quickstart's classifier recognizes the style, the subject of the prompt, and both.
"""

import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

WEIGHTS, STRENGTHS = (0.0, 0.03, 0.1, 0.3), (1.0, 0.9, 0.8, 0.7)  # the latter without a prior
SAMPLES, HAND = 96, "openmoji"
FLAGS = [
    "--config=examples/configs/quickstart.yaml",
    f"--name={HAND}",
    "--template=[filewords], [name]",
    "--validation_steps=100000",
]


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("flags", nargs="*", help="more training options, after --")
    args = parser.parse_args()
    quiet_libraries()
    from examples.benchmarks.judging import judge_samples, pipeline_with  # after --help, since these load torch
    from examples.benchmarks.quiet_training import train_quietly

    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(REPO)  # the preset's paths are relative to it
    print("| prior weight | strength | in the style | correct subject | both |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as work:
        for weight in WEIGHTS:
            run = Path(work, str(weight))
            options = [f"--output_dir={run}", f"--cache_dir={work}/cache", f"--prior_weight={weight}"]
            train_quietly([*FLAGS, *options, *args.flags])
            for strength in STRENGTHS[: 1 if weight else None]:
                seen = judge_samples(pipeline_with(run, strength), HAND, SAMPLES, suffix=f", {HAND}")
                cells = f"{seen.style:.0%} | {seen.subject:.0%} | {seen.both:.0%}"
                print(f"| {weight:g} | {strength:g} | {cells} |", flush=True)


if __name__ == "__main__":
    run_script(main)
