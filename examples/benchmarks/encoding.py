#!/usr/bin/env python
"""Measure how much faster two processes encode than one, on a core each, and count what they encode. Linux only.

    python examples/benchmarks/encoding.py                  # a few minutes; needs two idle cores
    python examples/benchmarks/encoding.py --images 128 --rounds 3

Uses the quickstart's model. In each round, first two processes that know nothing of each other encode all images, each
with one thread on a core of its own; then two that share the work do. So both ways use the same cores in the same way.
By CPU time, other work on the cores hardly matters, but neither does a process that waits for the other.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import torch
from accelerate import Accelerator

from examples.benchmarks.data import MODEL, draw_images, training_flags
from hypernet.cli.generation_options import parse_count
from hypernet.cli.training_options import parse_config
from hypernet.data.dataset import encode_dataset
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model import load_stable_diffusion
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.training.accelerator import connect_processes

SIDE = 256  # pixels; a batch has four images
MEETING_SECONDS = 300


def work(folder: Path, cache: Path, meeting: Path, core: int) -> dict[str, Any]:
    """Prepare the data as a run does before its first step, on one core, and time it.

    Args:
        meeting: a folder in which each of the two processes makes a file when it is ready.
    """
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    models = load_stable_diffusion(identify_base_model(ModelSource(str(MODEL))))
    processes = connect_processes(Accelerator(cpu=True))
    counts = {"images": 0, "prompts": 0}

    def count(name: str) -> Any:
        return lambda module, args: counts.__setitem__(name, counts[name] + len(args[0]))

    layers = models.text_encoders[0].named_modules()
    models.vae.encoder.register_forward_pre_hook(count("images"))
    next(layer for name, layer in layers if name.endswith("layers.0")).register_forward_pre_hook(count("prompts"))
    config = parse_config(training_flags(folder, cache, f"--resolution={SIDE}"))
    source = open_image_source(config)
    (meeting / str(core)).touch()
    deadline = time.monotonic() + MEETING_SECONDS
    while len(list(meeting.iterdir())) < 2:
        if time.monotonic() > deadline:
            raise RuntimeError("the other process has not started")
        time.sleep(0.01)
    started, used = time.perf_counter(), time.process_time()
    records, _ = index_images(source, config, models.base.image_multiple, processes)
    encode_dataset(models, source, records, config, torch.float32, processes)
    return {**counts, "seconds": time.perf_counter() - started, "CPU seconds": time.process_time() - used}


def start(words: list[Path | int], shared: dict[str, str]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--work", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **shared}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def run_two(folder: Path, place: Path, sharing: bool) -> list[dict[str, Any]]:
    """Run `work` in two processes, on the same cache or on one each, which is empty before."""
    meeting = place / "meeting"
    meeting.mkdir(parents=True)
    cores = sorted(os.sched_getaffinity(0))[:2]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    group = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = []
    for rank, core in enumerate(cores):
        cache = place / ("cache" if sharing else f"cache {rank}")
        cache.mkdir(exist_ok=True)
        shared = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if sharing else {}
        started.append(start([folder, cache, meeting, core], shared))
    outputs = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise RuntimeError("\n".join(stderr[-2000:] for _, stderr in outputs))
    return [json.loads(stdout.splitlines()[-1]) for stdout, _ in outputs]


def main(arguments: list[str] | None = None) -> None:
    if sys.argv[1:2] == ["--work"] and arguments is None:
        *folders, core = sys.argv[2:]
        print(json.dumps(work(*map(Path, folders), int(core))))
        return
    parser = ScriptParser(__doc__)
    parser.add_argument("--images", type=parse_count, default=512, help="default: %(default)s")
    parser.add_argument("--rounds", type=parse_count, default=3, help="default: %(default)s")
    args = parser.parse_args(arguments)
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("it needs two cores")
    ratios, clocks = [], ("seconds", "CPU seconds")
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        draw_images(place / "images", args.images, SIDE)
        for number in range(args.rounds):
            apart = run_two(place / "images", place / f"apart {number}", sharing=False)
            shared = run_two(place / "images", place / f"shared {number}", sharing=True)
            one, two = ([statistics.mean(each[clock] for each in both) for clock in clocks] for both in (apart, shared))
            ratios.append([before / after for before, after in zip(one, two)])
            counts = " + ".join(f"{each['images']} images, {each['prompts']} prompts" for each in shared)
            print(f"round {number + 1}: {describe(ratios[-1])}; encoded: {counts}", flush=True)
    print(f"median: {describe([statistics.median(column) for column in zip(*ratios)])}")


def describe(ratio: list[float]) -> str:
    return f"{ratio[0]:.2f} times one process's throughput ({ratio[1]:.2f} by CPU time)"


if __name__ == "__main__":
    run_script(main)
