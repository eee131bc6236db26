"""Eleven learning rates over five decades on the quickstart, each without the guard and with it.

    python examples/benchmarks/rate_robustness.py            # about ten minutes

It prints the held-out loss of what each run has exported, and how many of them are worse than the model without a hypernetwork.
"""

import argparse
import contextlib
import csv
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

GOOD = 3e-3  # what the quickstart begins with
NOISE = 1.001  # no worse, but for what an untrained start differs from none at all


def train(work: Path, rate: float, guard: bool, steps: int, flags: list[str]) -> dict:
    """A run; its last held-out loss, that of the exported file, and that of the model without a hypernetwork."""
    from accelerate.state import AcceleratorState

    import train_hypernetwork
    from hypernet.cli.training_options import parse_config

    output = work / f"{rate:.2g}-{guard}"
    options = ["--config", str(REPO / "examples" / "configs" / "quickstart.yaml"), "--output_dir", str(output)]
    options += [
        f"--learning_rate={rate:.3g}",
        f"--max_train_steps={steps}",
        f"--guard={guard}",
        "--validation_split=0.15",
    ]
    options += ["--validation_loss_steps=10", f"--cache_dir={work / 'cache'}", "--checkpointing_steps=100000"]
    options += ["--num_validation_images=1", "--validation_inference_steps=1", "--validation_steps=100000", *flags]
    AcceleratorState._reset_state(True)
    os.chdir(REPO)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_hypernetwork.main(parse_config(options))
    rows = list(csv.DictReader(open(output / "validation_loss.csv")))
    events = list(csv.DictReader(open(output / "guard.csv"))) if (output / "guard.csv").exists() else []
    returns = sum("goes back" in event["event"] for event in events)
    return {"exported": measure(options, output), "base": float(rows[0]["val_loss_base"]), "returns": returns}


def measure(options, output: Path) -> float:
    """The held-out loss of the `.pt` that a run has exported, measured anew."""
    import torch
    from accelerate import Accelerator

    import hypernet
    from hypernet.cli.training_options import parse_config
    from hypernet.data.image_index import index_images
    from hypernet.data.image_source import open_image_source
    from hypernet.data.validation_split import encode_validation, split_validation
    from hypernet.stable_diffusion.base_model import identify_base_model
    from hypernet.stable_diffusion.model import load_stable_diffusion
    from hypernet.stable_diffusion.model_source import ModelSource
    from hypernet.training.validation import ValidationLoss

    config = parse_config(options)
    source, models = open_image_source(config), load_stable_diffusion(identify_base_model(ModelSource.from_config(config)))
    with contextlib.redirect_stderr(io.StringIO()):
        pictures, _ = index_images(source, config, 8)
        _, held, _ = split_validation(source, None, pictures, config, 8)
        dataset = encode_validation(models, source, held, config, torch.float32)
    unet_with_hypernetwork = hypernet.HypernetworkUNet(models.unet, hypernet.load(output / "neon.pt"))
    return ValidationLoss(dataset, models, Accelerator(), config.train_batch_size).measure(unet_with_hypernetwork)["val_loss"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("flags", nargs="*", help="more options of the training, after --")
    arguments = parser.parse_args()
    work, worse = Path(tempfile.mkdtemp()), {False: 0, True: 0}
    print(f"{arguments.steps} steps of the quickstart at a constant rate\n")
    print("| rate | without the guard | with it | went back |\n| --- | --- | --- | --- |", flush=True)
    try:
        for i in range(-5, 6):
            rate = GOOD * 10 ** (i / 2)
            runs = {guard: train(work, rate, guard, arguments.steps, arguments.flags) for guard in (False, True)}
            for guard, run in runs.items():
                worse[guard] += not run["exported"] <= NOISE * run["base"]
            shown = [f"{runs[guard]['exported']:.3f}" for guard in (False, True)]
            print(f"| {rate:.2g} | {shown[0]} | {shown[1]} | {runs[True]['returns']} |", flush=True)
        print(f"\nwithout a hypernetwork: {runs[True]['base']:.3f}")
        print(f"runs that end worse than that: {worse[False]} without the guard, {worse[True]} with it")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
