#!/usr/bin/env python
"""Compare a run on 100,000 images with one on 1,000: time to the first step, memory, open files, steps. Linux only.

    python examples/benchmarks/scale.py                    # about fifteen minutes on two cores, 2 GB of disk
    python examples/benchmarks/scale.py --images 5000 --json scale.json

Uses the quickstart's model, and images of 32 x 32 pixels that differ in a comment, each with a caption of its own. One
in twenty has another size. Results are ratios, so that the speed of the machine hardly matters.
"""

import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import io

from accelerate import Accelerator

from examples.benchmarks.data import MODEL, STEPS, Stepper, prepare_data, print_figures
from examples.quickstart.tools.shapes import caption, draw, random_shape
from hypernet.cli.generation_options import parse_count
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource

FEW, STARTS = 1000, 3
SIDE, DRAWN, OTHER_SIZES = 32, 64, 20  # pixels; different pictures; one image in so many has another size
FLAGS = [f"--pretrained_model_name_or_path={MODEL}", "--varsize", "--train_batch_size=4", "--learning_rate=1e-3"]
FLAGS += ["--report_to=none", "--checkpointing_steps=1000000", "--logging_steps=1000", "--overwrite"]
RUN = """
import json, os, sys, time
sys.path.insert(0, sys.argv.pop(1))
import train_hypernetwork
from hypernet.cli.training_options import parse_config
from hypernet.training import updater
compute_loss, first = updater.training_loss, []
def timed(*arguments):
    first.append(time.time())
    return compute_loss(*arguments)
updater.training_loss = timed
train_hypernetwork.main(parse_config(sys.argv[1:]))
memory = [line for line in open("/proc/self/status") if line.startswith(("VmHWM", "RssAnon"))]
measured = {line.split(":")[0]: int(line.split()[1]) / 1000 for line in memory}
print(json.dumps({**measured, "first step": first[0], "open files": len(os.listdir("/proc/self/fd"))}))
"""


def write_images(folder: Path, count: int) -> None:
    """Write images with sidecar captions; the bytes of each, and its caption, are its own."""
    folder.mkdir(parents=True)
    rng, drawn = random.Random(0), []
    sides = [(SIDE, SIDE)] * (OTHER_SIZES - 1)
    for seed in range(DRAWN * OTHER_SIZES):
        kind = seed % OTHER_SIZES
        size = (sides + [(8 * rng.randint(2, 8), 8 * rng.randint(2, 8))])[kind]
        shape, buffer = random_shape(seed // OTHER_SIZES), io.BytesIO()
        draw(shape, SIDE).resize(size).save(buffer, "PNG")
        drawn.append((buffer.getvalue(), caption(shape)))
    for number in range(count):
        data, words = drawn[number % len(drawn)]
        (folder / f"{number:06d}.png").write_bytes(with_comment(data, f"number {number}"))
        (folder / f"{number:06d}.txt").write_text(f"{words}, number {number}")


def with_comment(png: bytes, text: str) -> bytes:
    """Return a PNG file with a comment, which changes its bytes but no pixel."""
    chunk = b"tEXt" + b"Comment\0" + text.encode()
    head, end = png[:-12], png[-12:]  # IEND comes last
    return head + (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") + end


def run(folder: Path, cache: Path, output: Path, steps: int = 1) -> dict[str, Any]:
    """Run the training script in its own process.

    Returns:
        The seconds until its first step, its peak and anonymous memory in MB, its open files, and the lines of its
        table of sizes.
    """
    flags = [*FLAGS, f"--train_data_dir={folder}", f"--cache_dir={cache}", f"--output_dir={output}"]
    command = [sys.executable, "-c", RUN, str(REPO), *flags, f"--max_train_steps={steps}"]
    started = time.time()
    completed = subprocess.run(command, cwd=REPO, capture_output=True, text=True)
    if completed.returncode:
        raise RuntimeError(completed.stderr[-3000:])
    found = json.loads(completed.stdout.splitlines()[-1])
    sizes = re.findall(r"^ +(?:\d+x\d+|\d+ more) +\d+ +\d+$", completed.stdout, re.MULTILINE)
    return {**found, "first step": found["first step"] - started, "lines of sizes": len(sizes)}


def compare_runs(folders: list[Path], counts: list[int], work: Path) -> dict[str, Any]:
    """Compare runs on the second folder with runs on the first one: with an empty cache, and with a full one."""
    caches, output = [work / f"cache {count}" for count in counts], work / "output"
    cold = [run(folder, cache, output) for folder, cache in zip(folders, caches)]
    warm = [[run(folder, cache, output, STEPS) for folder, cache in zip(folders, caches)] for _ in range(STARTS)]
    few, many = (
        {name: statistics.median(each[index][name] for each in warm) for name in warm[0][0]} for index in (0, 1)
    )
    first = "first step"
    return {
        "to the first step, cold, seconds": [each[first] for each in cold],
        "to the first step, cold, ratio": cold[1][first] / cold[0][first],
        "to the first step, warm, seconds": [few[first], many[first]],
        "to the first step, warm, ratio": many[first] / few[first],
        "peak memory cold, MB more": cold[1]["VmHWM"] - cold[0]["VmHWM"],
        "peak memory warm, MB more": many["VmHWM"] - few["VmHWM"],
        "of it not mapped files, at the end": many["RssAnon"] - few["RssAnon"],
        "open files": [few["open files"], many["open files"]],
        "lines of the table of sizes": [few["lines of sizes"], many["lines of sizes"]],
    }


def step_ratio(folders: list[Path], counts: list[int], work: Path) -> float:
    """Return the median step time on the second folder relative to the first, alternating between the two."""
    accelerator, models = Accelerator(), load_stable_diffusion(identify_base_model(ModelSource(str(MODEL))))
    caches = [work / f"cache {count}" for count in counts]
    prepared = [prepare_data(models, folder, cache, "--varsize") for folder, cache in zip(folders, caches)]
    times: list[list[float]] = [[], []]
    for _ in range(6):
        for index, data in enumerate(prepared):
            stepper = Stepper(models, accelerator, data)
            times[index] += [stepper.step()[1] for _ in range(STEPS // 3)][5:]
            stepper.close()
    return statistics.median(times[1]) / statistics.median(times[0])


def main(arguments: list[str] | None = None) -> None:
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", type=parse_count, default=100_000, help="default: %(default)s")
    parser.add_argument("--few", type=parse_count, default=FEW, help="to compare with; default: %(default)s")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    args = parser.parse_args(arguments)
    counts = [args.few, args.images]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        folders = [work / f"images {count}" for count in counts]
        for folder, count in zip(folders, counts):
            write_images(folder, count)
        figures = compare_runs(folders, counts, work)
        figures["step, ratio"] = step_ratio(folders, counts, work)
    print_figures({f"{args.images} images, compared with {args.few}": figures})
    if args.json:
        args.json.write_text(json.dumps(figures, indent=2))


if __name__ == "__main__":
    run_script(main)
