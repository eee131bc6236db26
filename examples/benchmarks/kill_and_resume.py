#!/usr/bin/env python
"""Kill a run again and again, resume it each time, and compare it with one that was never interrupted.

    python examples/benchmarks/kill_and_resume.py               # 40 steps, 30 kills; about ten minutes
    python examples/benchmarks/kill_and_resume.py --runs 10     # ten runs with random options, 30 kills each

Trains on the quickstart's model with dropout, shuffled tags, random latents, flips, accumulation, EMA, validation
images and the guard. With --runs, the options are random: the optimizer, EMA, a learning rate high enough to trigger
the guard, a learning rate that changes midway, aspect ratio buckets, two processes. Prints which files differ at the
end (none should: weights, optimizer, EMA, CSV), and how many kills interrupted a save.
"""

import csv
import io
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

import hypernet
from examples.quickstart.tools.shapes import draw, random_shape
from hypernet.cli.script import ScriptParser, run_script

SAVING = ["--checkpointing_steps=2", "--logging_steps=3", "--report_to=none", "--name=x"]
FLAGS = [*SAVING, "--learning_rate=1e-3", "--layer_structure=1,2,1", "--activation=mish", "--dropout_structure=0,0.2,0"]
FLAGS += ["--train_batch_size=2", "--gradient_accumulation_steps=2", "--random_flip", "--latent_sampling=random"]
FLAGS += ["--shuffle_tags", "--tag_dropout=0.2", "--caption_dropout=0.1", "--ema_decay=0.9", "--noise_offset=0.05"]
FLAGS += ["--snr_gamma=5", "--validation_split=0.2", "--validation_loss_steps=5", "--seed=3"]
# Random states that Accelerate saves but nothing uses, the manifest with their hashes, and files with paths or plots
NOT_COMPARED = {"random_states_0.pkl", "random_states_1.pkl", "manifest.json", "run.json", "README.md", "loss.png"}
NOT_COMPARED |= {"run.lock", "run.html"}
TIMES = ("images_per_second", "peak_memory_gib")  # columns of metrics.csv
TWO_PROCESSES = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
TWO_PROCESSES += ["--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
OPTIMIZERS = {  # each with a learning rate that suits it, and its arguments
    "AdamW": ("1e-3", []),
    "SGD": ("1e-1", ["momentum=0.9", "nesterov=true"]),
    "RMSprop": ("1e-4", ["centered=true"]),
    "Adagrad": ("1e-2", []),
    "NAdam": ("1e-3", []),
    "RAdam": ("1e-3", []),
    "Adamax": ("1e-3", []),
    "Adafactor": ("1e-2", []),
}


def draw_images(folder: Path, count: int = 12, size: int = 128, wide: bool = False) -> None:
    """Draw colored shapes, with tags as captions; with `wide`, crop every third image to a wide one."""
    folder.mkdir(parents=True)
    for i in range(count):
        shape = random_shape(i)
        box = (0, size // 4, size, size - size // 4) if wide and i % 3 == 0 else (0, 0, size, size)
        draw(shape, size).crop(box).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{shape.color}, {shape.name}, {shape.background}, flat")


def draw_options(rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Sample the options of a run: the initial ones, those changed midway, and the launcher's, if any."""
    name = rng.choice(list(OPTIMIZERS))
    rate, arguments = OPTIMIZERS[name]
    flags = [*SAVING, f"--optimizer={name}", f"--learning_rate={rate}", f"--seed={rng.randrange(1000)}"]
    flags += ["--optimizer_args", *arguments] if arguments else []
    choices = [
        ["--ema_decay=0.9"],
        ["--aspect_buckets"],
        ["--gradient_accumulation_steps=2"],
        ["--dropout_structure=0,0.2,0"],
        ["--random_flip", "--latent_sampling=random", "--shuffle_tags", "--caption_dropout=0.1"],
        ["--validation_split=0.2", f"--validation_loss_steps={rng.randint(2, 7)}"],
    ]
    flags += [flag for drawn in choices if rng.random() < 0.5 for flag in drawn]
    if rng.random() < 0.3:  # triggers the guard
        flags += ["--learning_rate=3", "--clip_grad_mode=none", "--validation_split=0.2", "--validation_loss_steps=2"]
    later = [f"--learning_rate={float(rate) / 3:g}"] if rng.random() < 0.5 else []
    return flags, later, TWO_PROCESSES if rng.random() < 0.2 else []


def log_path(output: Path) -> Path:
    return output.with_name(f"{output.name}.log")


def start(output: Path, flags: Sequence[str], launch: Sequence[str] = ()) -> psutil.Popen:
    """Start the training script; its output goes to `log_path(output)`."""
    command = [sys.executable, *launch, str(REPO / "train_hypernetwork.py"), "--output_dir", str(output), *flags]
    with open(log_path(output), "w") as file:
        return psutil.Popen(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT)


def finish(output: Path, flags: Sequence[str], launch: Sequence[str] = ()) -> None:
    """Run the training script to its end."""
    check(start(output, flags, launch).wait(), output)


def check(exit_code: int, output: Path) -> None:
    """Raise RuntimeError with the end of the log if a run has failed."""
    if exit_code != 0:
        raise RuntimeError(log_path(output).read_text()[-3000:])


def kill_while_training(
    output: Path, flags: Sequence[str], delay: float, launch: Sequence[str] = (), any_time: bool = False
) -> bool:
    """Start the run and kill it `delay` seconds after it is training and has a checkpoint.

    Args:
        any_time: count `delay` from the start of the process, so that the kill may also hit the setup.

    Returns:
        False if it finished first.
    """
    process = start(output, flags, launch)
    deadline = time.monotonic() + delay if any_time else None
    while process.poll() is None:
        is_training = deadline is None and "Training:" in log_path(output).read_text()
        if is_training and any((output / "checkpoints").iterdir()):
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            for each in [*process.children(recursive=True), process]:
                each.kill()
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
    if path.name == "metrics.csv":
        rows = csv.DictReader(io.StringIO(path.read_text()))
        return [{name: cell for name, cell in row.items() if name not in TIMES} for row in rows]
    return path.read_bytes()


def read_run(folder: Path) -> dict[Path, Any]:
    """Return the content of each file that is compared."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_COMPARED]
    return {path.relative_to(folder): content(path) for path in files}


def compare(
    work: Path,
    flags: Sequence[str],
    kills: int,
    seconds: float,
    seed: int = 0,
    later: Sequence[str] = (),
    launch: Sequence[str] = (),
) -> dict[str, Any]:
    """Run once with up to `kills` kills and, unless `work` holds that run already, once without.

    Args:
        seconds: roughly the duration of the training without kills.
        later: options that change after the run with `flags` has ended; they must add steps.
        launch: the launcher's arguments, for several processes.
    """
    whole, parts, rng = work / "whole", work / "parts", random.Random(seed)
    phases = [list(flags), *([[*flags, *later]] if later else [])]
    if not whole.exists():
        for phase in phases:
            finish(whole, phase, launch)
    killed = interrupted_saves = resumed = 0
    for number, phase in enumerate(phases, 1):
        while killed < kills * number // len(phases):
            any_time = rng.random() < 0.2 and seconds > 5  # also during startup
            if not kill_while_training(parts, phase, rng.uniform(0, 2 * seconds / kills), launch, any_time):
                break
            killed += 1
            interrupted_saves += any(parts.rglob(".*.tmp"))
            resumed += has_resumed(parts)
            checkpoints = sorted(path.name for path in (parts / "checkpoints").glob("step-*"))
            print(f"kill {killed}: newest checkpoint {checkpoints[-1] if checkpoints else 'none'}", flush=True)
        finish(parts, phase, launch)
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
    parser.add_argument(
        "--runs", type=int, default=0, help="number of runs with random options; default: one run with fixed options"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the options and the kills; default: %(default)s")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # for the runs
    differing = 0
    for number in range(max(1, args.runs)):
        rng = random.Random(args.seed + number)
        drawn, later, launch = draw_options(rng) if args.runs else (FLAGS, [], [])
        if args.runs:
            print(
                f"run {number + 1} of {args.runs}: {' '.join([*launch, *drawn])}; later {' '.join(later) or 'the same'}"
            )
        with tempfile.TemporaryDirectory() as work:
            images = Path(work, "images")
            draw_images(images, wide="--aspect_buckets" in drawn)
            flags = ["--pretrained_model_name_or_path=examples/quickstart/model", "--resolution=128"]
            flags += [f"--train_data_dir={images}", f"--cache_dir={work}/cache", "--checkpoints_total_limit=3", *drawn]
            flags += [f"--max_train_steps={args.steps // 2 if later else args.steps}"]
            later = [*later, f"--max_train_steps={args.steps}"] if later else []
            result = compare(Path(work), flags, args.kills, args.seconds, args.seed + number, later, launch)
            for name, value in result.items():
                print(f"{name}: {value}", flush=True)
            differing += bool(result["differing"])
    if args.runs:
        print(f"{args.runs - differing} of {args.runs} runs are identical to uninterrupted ones")


if __name__ == "__main__":
    run_script(main)
