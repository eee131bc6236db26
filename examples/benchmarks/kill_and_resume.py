"""Kill a training again and again, resume it each time, and compare it with one that was left alone.

    python examples/benchmarks/kill_and_resume.py            # 40 steps of the quickstart's model, 30 kills; about ten minutes

Dropout, shuffled tags, random latents, flips, accumulation, the moving average, held-out images and the guard are on. It prints
which files differ in the end (none: weights, optimizer, average, CSV), and how many kills hit a save.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

FLAGS = ["--learning_rate=1e-3", "--layer_structure=1,2,1", "--activation=mish", "--dropout_structure=0,0.2,0"]
FLAGS += ["--train_batch_size=2", "--gradient_accumulation_steps=2", "--random_flip", "--latent_sampling=random"]
FLAGS += ["--shuffle_tags", "--tag_dropout=0.2", "--caption_dropout=0.1", "--ema_decay=0.9", "--noise_offset=0.05"]
FLAGS += ["--snr_gamma=5", "--validation_split=0.2", "--validation_loss_steps=5", "--checkpointing_steps=2"]
FLAGS += ["--logging_steps=3", "--report_to=none", "--name=x", "--seed=3"]
# What Accelerate keeps of generators that nothing here draws from, and the list that has its hash; times and pictures
NOT_COMPARED = {"random_states_0.pkl", "manifest.json", "run.json", "README.md", "loss.png", "metrics.csv"}


def draw_pictures(folder: Path, count=12, size=128):
    """Neon pictures with tags as captions."""
    from examples.quickstart.tools.draw import draw, random_scene

    rng = random.Random(0)
    folder.mkdir(parents=True)
    for i in range(count):
        scene = random_scene(rng)
        draw(scene, "neon", size=size).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{scene.color}, {scene.subject}, {scene.background}, night")


def start(output, flags) -> tuple[subprocess.Popen, Path]:
    """The running training, and the file with what it says."""
    command = [sys.executable, str(REPO / "train_hypernetwork.py"), "--output_dir", str(output), *flags]
    log = output.with_name(f"{output.name}.log")
    with open(log, "w") as file:
        return subprocess.Popen(command, cwd=REPO, stdout=file, stderr=subprocess.STDOUT), log


def finish(output, flags):
    process, log = start(output, flags)
    if process.wait() != 0:
        raise RuntimeError(log.read_text()[-3000:])


def kill_while_training(output, flags, delay: float) -> bool:
    """Start the run, kill it `delay` seconds after its steps and ever a save have begun; False if it was done before."""
    (process, log), deadline = start(output, flags), None
    while process.poll() is None:
        if deadline is None and "Training:" in log.read_text() and any((output / "checkpoints").iterdir()):
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() >= deadline:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.002)
    if process.returncode != 0:
        raise RuntimeError(log.read_text()[-3000:])
    return False


def content(path: Path):
    """A file's bytes; of weights to use, every tensor's bytes and what is said about them.

    (safetensors writes the entries of its header in a random order, and PyTorch's legacy format holds addresses.)
    """
    import hypernet

    if path.suffix == ".safetensors" or path.name == "x.pt":
        opened = hypernet.load(path if path.suffix == ".pt" else path.parent)
        tensors = {name: tensor.numpy().tobytes() for name, tensor in opened.state_dict().items()}
        return tensors, dict(opened.config)
    return path.read_bytes()


def differing_files(a: Path, b: Path) -> list[str]:
    """Files of two finished runs that are not the same, or are only in one."""

    def files(folder):
        found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
        return {name: content(path) for name, path in found.items() if name.name not in NOT_COMPARED}

    ours, theirs = files(a), files(b)
    return sorted(str(name) for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def compare(work: Path, flags: list[str], kills: int, seconds: float, seed=0) -> dict:
    """Run it once with up to `kills` kills, and once as it is, unless `work` has that run already.

    `seconds` is about what the training itself takes.
    """
    whole, parts, rng = work / "whole", work / "parts", random.Random(seed)
    if not whole.exists():
        finish(whole, flags)
    killed = torn = resumed = 0
    while killed < kills and kill_while_training(parts, flags, rng.uniform(0, 2 * seconds / kills)):
        killed += 1
        torn += any(parts.rglob(".*.tmp"))
        resumed += "Going on from" in parts.with_name("parts.log").read_text()
        states = sorted(path.name for path in (parts / "checkpoints").glob("step-*"))
        print(f"kill {killed}: newest state {states[-1] if states else 'none'}", flush=True)
    finish(parts, flags)
    names = [path for path in whole.rglob("*") if path.is_file() and path.name not in NOT_COMPARED]
    differing = differing_files(whole, parts)
    resumed += "Going on from" in parts.with_name("parts.log").read_text()
    return {
        "kills": killed,
        "during a save": torn,
        "resumed": resumed,
        "files compared": len(names),
        "differing": differing,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=12.0, help="about what the training takes without kills")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    work = Path(tempfile.mkdtemp())
    try:
        draw_pictures(work / "images")
        flags = ["--pretrained_model_name_or_path", "examples/quickstart/model", "--resolution=128"]
        flags += ["--train_data_dir", str(work / "images"), "--cache_dir", str(work / "cache")]
        flags += [f"--max_train_steps={arguments.steps}", "--checkpoints_total_limit=3", *FLAGS]
        for name, value in compare(work, flags, arguments.kills, arguments.seconds).items():
            print(f"{name}: {value}")
    finally:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
