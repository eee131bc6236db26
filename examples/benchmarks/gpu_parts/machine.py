"""Describe the machine, for examples/benchmarks/gpu_check.py."""

import contextlib
import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator

import psutil
import torch

from examples.benchmarks.gpu_parts.processes import REPO, Row, Settings

PACKAGES = ("torch", "accelerate", "diffusers", "transformers", "peft", "bitsandbytes", "datasets", "numpy")
GIB = 2**30


def facts(settings: Settings) -> Iterator[Row]:
    """Yield a row per fact. None of them names the user or the machine."""
    found = {
        "commit": commit(),
        "GPU": gpus(settings.device),
        "driver, CUDA, cuDNN": cuda() if settings.device == "cuda" else "",
        "processor": f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / GIB:.0f} GiB",
        "system": platform.platform(terse=True),
        "Python": platform.python_version(),
    }
    yield from ({"fact": name, "value": value} for name, value in found.items() if value)
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield {"fact": package, "value": importlib.metadata.version(package)}


def gpus(device: str) -> str:
    """Return name, memory and compute capability of each GPU; the chip of a Mac."""
    if device == "mps":
        return run("sysctl", "-n", "machdep.cpu.brand_string") or "Apple's"
    if device == "cpu":
        return "none; this is a check of the CPU"
    found = []
    for number in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        memory = f"{total / GIB:.1f} GiB, {free / GIB:.1f} free"
        found.append(f"{one.name} ({memory}, compute capability {one.major}.{one.minor})")
    return "; ".join(found)


def cuda() -> str:
    """Return the versions of the driver, CUDA and cuDNN."""
    driver = run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]
    return f"{driver or 'unknown'}, {torch.version.cuda or torch.version.hip}, {torch.backends.cudnn.version()}"


def commit() -> str:
    """Return the checkout's commit, and whether files differ from it."""
    changed = "with changes" if run("git", "-C", str(REPO), "status", "--porcelain", "-uno") else ""
    return " ".join(filter(None, [run("git", "-C", str(REPO), "rev-parse", "--short=12", "HEAD"), changed]))


def run(*command: str) -> str:
    """Return what a command prints; nothing if it is not there or fails."""
    if not shutil.which(command[0]):
        return ""
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""
