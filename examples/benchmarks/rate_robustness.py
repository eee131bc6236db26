#!/usr/bin/env python
"""Train the quickstart at eleven learning rates over five decades, with and without the divergence guard.

    python examples/benchmarks/rate_robustness.py            # about ten minutes
    python examples/benchmarks/rate_robustness.py -- --activation linear --clip_grad_mode none

Prints the validation loss of the file each run exports, and how many of them are worse than the base model.
"""

import contextlib
import csv
import dataclasses
import io
import os
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script
from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig

LEARNING_RATE = 3e-3  # the quickstart's first
TOLERANCE = 1.001  # times the base model's loss: an untrained hypernetwork differs from none by that much


@dataclasses.dataclass
class Result:
    """How a run has ended.

    Attributes:
        exported: the validation loss of the exported file.
        base: the validation loss of the base model.
        rollbacks: how often the guard rolled back.
    """

    exported: float
    base: float
    rollbacks: int


def train(work: Path, learning_rate: float, guard: bool, steps: int, flags: list[str]) -> Result:
    """Train in this process, without output."""
    from accelerate.state import AcceleratorState  # after --help, since these load torch

    import train_hypernetwork

    output = work / f"{learning_rate:.2g}-{guard}"
    options = ["--config=examples/configs/quickstart.yaml", f"--output_dir={output}", f"--cache_dir={work / 'cache'}"]
    options += [f"--learning_rate={learning_rate:.3g}", f"--max_train_steps={steps}", f"--guard={guard}"]
    options += ["--validation_split=0.15", "--validation_loss_steps=10", "--checkpointing_steps=100000"]
    options += ["--num_validation_images=1", "--validation_inference_steps=1", "--validation_steps=100000", *flags]
    config = parse_config(options)
    AcceleratorState._reset_state(True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_hypernetwork.main(config)
        exported = measure_validation_loss(config, output / f"{config.name}.pt")
    with open(output / "validation_loss.csv", newline="") as file:
        base = float(next(csv.DictReader(file))["val_loss_base"])
    return Result(exported, base, count_rollbacks(output / "guard.csv"))


def count_rollbacks(path: Path) -> int:
    """Count the rollbacks in a guard.csv, which exists only if there were events."""
    if not path.exists():
        return 0
    with open(path, newline="") as file:
        return sum("goes back" in event["event"] for event in csv.DictReader(file))


def measure_validation_loss(config: TrainingConfig, path: Path) -> float:
    """Measure the validation loss of a hypernetwork file from scratch."""
    import torch
    from accelerate import Accelerator

    import hypernet
    from hypernet.data.image_index import index_images
    from hypernet.data.image_source import open_image_source
    from hypernet.data.validation_split import encode_validation, split_validation
    from hypernet.stable_diffusion.base_model import identify_base_model
    from hypernet.stable_diffusion.model import load_stable_diffusion
    from hypernet.stable_diffusion.model_source import ModelSource
    from hypernet.training.validation import ValidationLoss

    models = load_stable_diffusion(identify_base_model(ModelSource.from_config(config)))
    source, multiple = open_image_source(config), models.base.image_multiple
    records, _ = index_images(source, config, multiple)
    _, validation, _ = split_validation(source, None, records, config, multiple)
    dataset = encode_validation(models, source, validation, config, torch.float32)
    loss = ValidationLoss(dataset, models, Accelerator(), config.train_batch_size)
    return loss.measure(hypernet.HypernetworkUNet(models.unet, hypernet.load(path)))["val_loss"]


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--steps", type=int, default=150, help="of each run; default: %(default)s")
    parser.add_argument("flags", nargs="*", help="more training options, after --")
    args = parser.parse_args()
    quiet_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.chdir(REPO)  # the preset's paths are relative to it
    print(f"{args.steps} steps of the quickstart at a constant learning rate\n")
    print("| learning rate | without the guard | with it | rollbacks |\n| --- | --- | --- | --- |", flush=True)
    worse = {False: 0, True: 0}
    with tempfile.TemporaryDirectory() as work:
        for i in range(-5, 6):
            learning_rate = LEARNING_RATE * 10 ** (i / 2)
            runs = {guard: train(Path(work), learning_rate, guard, args.steps, args.flags) for guard in (False, True)}
            for guard, run in runs.items():
                worse[guard] += not run.exported <= TOLERANCE * run.base  # so that NaN counts as worse
            losses = f"{runs[False].exported:.3f} | {runs[True].exported:.3f}"
            print(f"| {learning_rate:.2g} | {losses} | {runs[True].rollbacks} |", flush=True)
    print(f"\nbase model: {runs[True].base:.3f}")
    print(f"runs that end worse than that: {worse[False]} without the guard, {worse[True]} with it")


if __name__ == "__main__":
    run_script(main)
