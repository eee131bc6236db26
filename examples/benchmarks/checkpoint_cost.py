"""What share of the quickstart's time goes into its checkpoints, when it writes one every ten steps.

    python examples/benchmarks/checkpoint_cost.py            # about a minute

Everything a checkpoint does is in it: the training state with its hashes, the exported hypernetwork in both formats, the loss plot.
"""

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

STEPS, EVERY, MOST = 400, 10, 0.05


def main():
    import train_hypernetwork
    from hypernet.cli.training_options import parse_config
    from hypernet.training.checkpoint import Checkpointer
    from hypernet.training.monitor import Monitor

    spent, ends = [], []

    def timed(function):
        def call(*arguments, **options):
            began = time.perf_counter()
            result = function(*arguments, **options)
            ends.append(time.perf_counter())
            spent.append(ends[-1] - began)
            return result

        return call

    Checkpointer.save, Monitor.plot = timed(Checkpointer.save), timed(Monitor.plot)
    begin, started = Monitor.begin, []
    Monitor.begin = lambda *arguments: (begin(*arguments), started.append(time.perf_counter()))
    work = Path(tempfile.mkdtemp())
    try:
        options = ["--config", str(REPO / "examples" / "configs" / "quickstart.yaml"), "--output_dir", str(work / "run")]
        options += [f"--max_train_steps={STEPS}", f"--checkpointing_steps={EVERY}", "--validation_steps=100000"]
        os.chdir(REPO)
        train_hypernetwork.main(parse_config([*options, f"--cache_dir={work / 'cache'}", "--validation_inference_steps=1"]))
    finally:
        shutil.rmtree(work)
    share = sum(spent) / (ends[-1] - started[0])
    count = STEPS // EVERY
    print(
        f"{count} checkpoints in {STEPS} steps took {100 * share:.1f} % of the training's time (limit {100 * MOST:.0f} %)"
    )
    sys.exit(share > MOST)


if __name__ == "__main__":
    main()
