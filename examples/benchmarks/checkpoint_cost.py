#!/usr/bin/env python
"""Measure the share of a quickstart run that goes into checkpoints, with one every ten steps.

    python examples/benchmarks/checkpoint_cost.py            # about a minute

Counts everything a checkpoint involves: the state with its hashes, the exported hypernetwork in both formats, the loss
plot. The exit code is 1 if the share is above the limit.
"""

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script
from hypernet.cli.training_options import parse_config

STEPS, CHECKPOINTING_STEPS, LIMIT = 400, 10, 0.05


def measure_share(more_flags: Sequence[str] = ()) -> float:
    """Train the quickstart with these extra options; return its checkpoints' share of the training loop's time."""
    import train_hypernetwork  # after --help, since it loads torch
    from examples.benchmarks.clock import Clock
    from hypernet.training.checkpoint import Checkpointer
    from hypernet.training.monitor import Monitor
    from hypernet.training.outcome import Outcome

    os.chdir(REPO)  # the preset's paths are relative to it
    start, checkpoints = Clock(), Clock()
    with tempfile.TemporaryDirectory() as work:
        flags = ["--config=examples/configs/quickstart.yaml", f"--output_dir={work}/run", f"--cache_dir={work}/cache"]
        flags += [f"--max_train_steps={STEPS}", f"--checkpointing_steps={CHECKPOINTING_STEPS}"]
        flags += ["--validation_steps=100000", "--validation_inference_steps=1"]
        with (
            start.measure(Monitor, "begin"),
            checkpoints.measure(Checkpointer, "save"),
            checkpoints.measure(Outcome, "plot"),
        ):
            train_hypernetwork.main(parse_config([*flags, *more_flags]))
    return checkpoints.inside / (checkpoints.last - start.last)


def main() -> None:
    ScriptParser(__doc__).parse_args()
    quiet_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    share, count = measure_share(), STEPS // CHECKPOINTING_STEPS
    print(f"{count} checkpoints in {STEPS} steps took {share:.1%} of the training time (limit {LIMIT:.0%})")
    sys.exit(share > LIMIT)


if __name__ == "__main__":
    run_script(main)
