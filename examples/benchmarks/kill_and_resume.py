#!/usr/bin/env python
"""Kill a run again and again, resume it each time, and compare it with one that was never interrupted.

    python examples/benchmarks/kill_and_resume.py            # 40 steps, 30 kills; about ten minutes

Trains on the quickstart's model with dropout, shuffled tags, random latents, flips, accumulation, EMA, validation
images and the guard. Prints which files differ in the end (none should: weights, optimizer, EMA, CSV), and how many
kills interrupted a save.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import hypernet
from examples.quickstart.tools.draw import draw, random_scene
from hypernet.cli.script import ScriptParser, run_script

FLAGS = ["--learning_rate=1e-3", "--layer_structure=1,2,1", "--activation=mish", "--dropout_structure=0,0.2,0"]
FLAGS += ["--train_batch_size=2", "--gradient_accumulation_steps=2", "--random_flip", "--latent_sampling=random"]
FLAGS += ["--shuffle_tags", "--tag_dropout=0.2", "--caption_dropout=0.1", "--ema_decay=0.9", "--noise_offset=0.05"]
FLAGS += ["--snr_gamma=5", "--validation_split=0.2", "--validation_loss_steps=5", "--checkpointing_steps=2"]
FLAGS += ["--logging_steps=3", "--report_to=none", "--name=x", "--seed=3"]
# Generators that Accelerate saves and nothing here uses, the manifest with their hash; files with times or plots
NOT_COMPARED = {"random_states_0.pkl", "manifest.json", "run.json", "README.md", "loss.png", "metrics.csv"}


def draw_images(folder: Path, count: int = 12, size: int = 128) -> None:
    """Draw images in the neon style, with tags as captions."""
    rng = random.Random(0)
    folder.mkdir(parents=True)
    for i in range(count):
        scene = random_scene(rng)
        draw(scene, "neon", size=size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{scene.color}, {scene.subject}, {scene.background}, night")


def log_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.log")


def start(output: Path, flags: list[str]) -> subprocess.Popen:
    """Start the training script; its output goes to `log_path(output)`."""
    command = [sys.executable, str(REPO / "train_hypernetwork.py"), "--output_dir", str(output), *flags]
    with open(log_path(output), "w") as file:
        return subprocess.Popen(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT)


def finish(output: Path, flags: list[str]) -> None:
    """Run the training script to its end."""
    check(start(output, flags).wait(), output)


def check(exit_code: int, output: Path) -> None:
    """Raise RuntimeError with the end of the log if a run has failed."""
    if exit_code != 0:
        raise RuntimeError(log_path(output).read_text()[-3000:])


def kill_while_training(output: Path, flags: list[str], delay: float) -> bool:
    """Start the run and kill it `delay` seconds after it is training and has a checkpoint.

    Returns:
        False if it finished first.
    """
    process, deadline = start(output, flags), None
    while process.poll() is None:
        is_training = deadline is None and "Training:" in log_path(output).read_text()
        if is_training and any((output / "checkpoints").iterdir()):
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    check(process.returncode, output)
    return False


def has_resumed(output: Path) -> bool:
    """Whether the log of the last start names a checkpoint and its step."""
    return re.search(r"checkpoints/step-\d+, step \d+$", log_path(output).read_text(), re.M) is not None


def content(path: Path) -> Any:
    """Return a file's bytes; for hypernetworks, the bytes of every tensor and the config.

    safetensors writes the entries of its header in random order, and PyTorch's legacy format contains addresses.
    """
    if path.suffix == ".safetensors" or path.name == "x.pt":
        hypernetwork = hypernet.load(path if path.suffix == ".pt" else path.parent)
        tensors = {name: tensor.numpy().tobytes() for name, tensor in hypernetwork.state_dict().items()}
        return tensors, dict(hypernetwork.config)
    return path.read_bytes()


def read_run(folder: Path) -> dict[Path, Any]:
    """Return the content of each file that is compared."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_COMPARED]
    return {path.relative_to(folder): content(path) for path in files}


def compare(work: Path, flags: list[str], kills: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Run once with up to `kills` kills and, unless `work` holds that run already, once without.

    Args:
        seconds: roughly the duration of the training without kills.
    """
    whole, parts, rng = work / "whole", work / "parts", random.Random(seed)
    if not whole.exists():
        finish(whole, flags)
    killed = interrupted_saves = resumed = 0
    while killed < kills and kill_while_training(parts, flags, rng.uniform(0, 2 * seconds / kills)):
        killed += 1
        interrupted_saves += any(parts.rglob(".*.tmp"))
        resumed += has_resumed(parts)
        checkpoints = sorted(path.name for path in (parts / "checkpoints").glob("step-*"))
        print(f"kill {killed}: newest checkpoint {checkpoints[-1] if checkpoints else 'none'}", flush=True)
    finish(parts, flags)
    resumed += has_resumed(parts)
    expected, found = read_run(whole), read_run(parts)
    names = expected.keys() | found.keys()
    return {
        "kills": killed,
        "during a save": interrupted_saves,
        "resumed": resumed,
        "files compared": len(expected),
        "differing": sorted(str(name) for name in names if expected.get(name) != found.get(name)),
    }


def main() -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--kills", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=40, help="default: %(default)s")
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="roughly, of the training without kills; default: %(default)s"
    )
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for the runs
    with tempfile.TemporaryDirectory() as work:
        images = Path(work, "images")
        draw_images(images)
        flags = ["--pretrained_model_name_or_path=examples/quickstart/model", "--resolution=128"]
        flags += [f"--train_data_dir={images}", f"--cache_dir={work}/cache"]
        flags += [f"--max_train_steps={args.steps}", "--checkpoints_total_limit=3", *FLAGS]
        for name, value in compare(Path(work), flags, args.kills, args.seconds).items():
            print(f"{name}: {value}")


if __name__ == "__main__":
    run_script(main)
