"""The quickstart in half precision and on the CPU, for examples/benchmarks/gpu_check.py."""

import shutil
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import hypernet
from examples.benchmarks.gpu_parts.processes import REPO, Row, Settings, Skipped
from examples.benchmarks.gpu_parts.runs import QUICKSTART, read_column, run_folder, train
from examples.benchmarks.gpu_parts.steps import half_precision
from examples.quickstart.tools import classifier
from examples.quickstart.tools.measure import load_pipeline, prompt_scenes, sample, share_right
from examples.quickstart.tools.scenes import caption

HAND = "openmoji"  # the style of the quickstart's images
SAMPLES = 96
CPU_STEPS = 200  # of the quickstart, within the first stretch of its learning rate schedule
WINDOW = 50  # steps whose losses are averaged


def train_quickstart(settings: Settings, name: str, precision: str, *flags: str) -> Path:
    """Train the quickstart; return the output folder."""
    quick = ["--max_train_steps=4", "--learning_rate=1e-3", "--logging_steps=2", "--validation_inference_steps=2"]
    preset = f"--config={REPO / 'examples' / 'configs' / 'quickstart.yaml'}"
    flags = (*flags, *(quick if settings.quick else []))
    return train(settings, name, preset, f"--mixed_precision={precision}", *flags)


def in_half_precision(settings: Settings, precision: str) -> Iterator[Row]:
    """Yield speed, memory and losses of the quickstart in half precision, and what its classifier sees in samples."""
    if settings.device == "cpu" and precision == "fp16":
        raise Skipped("needs CUDA or MPS")
    if settings.device == "cuda" and precision == "bf16" and half_precision("cuda") != "bfloat16":
        raise Skipped("this GPU does not support bf16")
    started = time.monotonic()
    folder = train_quickstart(settings, precision, precision)
    seconds, metrics = time.monotonic() - started, folder / "metrics.csv"
    losses = read_column(folder / "hypernetwork_loss.csv", "loss")
    yield {"measure": "whole run, s", "value": seconds}
    speed = statistics.median(read_column(metrics, "images_per_second"))
    yield {"measure": "images per second, median", "value": speed}
    yield {"measure": "peak memory, GiB", "value": max(read_column(metrics, "peak_memory_gib"))}
    yield {"measure": "mean loss of the last tenth", "value": statistics.fmean(losses[-max(1, len(losses) // 10) :])}
    shutil.copy(folder / "previews" / "before_after.png", settings.folder / f"quickstart_{precision}.png")
    yield {"measure": "previews", "value": f"quickstart_{precision}.png, beside this file"}
    yield from judge_samples(settings, folder)


def judge_samples(settings: Settings, folder: Path) -> Iterator[Row]:
    """Yield the shares of samples in the style and with the right subject, without and with the hypernetwork.

    They are generated in float32, so that only the training differs from a CPU's.
    """
    if not classifier.PATH.exists():
        yield {"measure": "shares of samples", "value": "not measured: the quickstart's classifier is missing"}
        return
    judge, pipeline = classifier.load_classifier(), load_pipeline(QUICKSTART / "model").to(settings.device)
    scenes = prompt_scenes(2 if settings.quick else SAMPLES)
    for title in ("without", "with"):
        if title == "with":
            hypernet.attach(pipeline.unet, hypernet.load(folder).to(settings.device))
        images = sample(pipeline, [caption(scene) for scene in scenes], steps=2 if settings.quick else 20)
        seen = classifier.judge(judge, images)
        in_hand = share_right(seen["hand"], [HAND] * len(scenes))
        subject = share_right(seen["subject"], [scene.subject for scene in scenes])
        yield {"measure": f"share in the style, {title}", "value": in_hand}
        yield {"measure": f"share with the right subject, {title}", "value": subject}


def on_cpu(settings: Settings) -> Iterator[Row]:
    """Yield losses of the quickstart's first steps on the CPU beside those in half precision, and the previews'.

    Images, noise and timesteps are the same, so the losses differ by rounding alone.
    """
    steps = [f"--max_train_steps={CPU_STEPS}", f"--validation_steps={CPU_STEPS}"]
    folders = {"CPU, float32": train_quickstart(settings, "cpu", "no", *steps)}
    runs = {precision: run_folder(settings, precision) for precision in ("fp16", "bf16")}
    folders |= {name: folder for name, folder in runs.items() if (folder / "hypernetwork_loss.csv").exists()}
    tables = {name: folder / "hypernetwork_loss.csv" for name, folder in folders.items()}
    losses = {name: dict(zip(read_column(table, "step"), read_column(table, "loss"))) for name, table in tables.items()}
    last = int(max(losses["CPU, float32"]))
    window = min(WINDOW, last)
    for end in range(window, last + 1, window):
        first, row = end - window + 1, {}
        for name, of_run in losses.items():
            if within := [loss for at, loss in of_run.items() if first <= at <= end]:
                row[name] = statistics.fmean(within)
        yield {"measure": f"mean loss, steps {first} to {end}", **row}
    previews = {
        name: np.asarray(Image.open(folder / "previews" / "step-000000.png").convert("RGB"), float)
        for name, folder in folders.items()
    }
    differences = {name: float(np.abs(image - previews["CPU, float32"]).mean()) for name, image in previews.items()}
    yield {"measure": "previews without a hypernetwork, mean difference (of 255)", **differences}
