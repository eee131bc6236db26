"""Steps of examples/benchmarks/gpu_check.py without a training loop: time and memory on UNets with random weights."""

import argparse
import contextlib
import gc
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from examples.benchmarks import presets, step
from examples.benchmarks.gpu_parts.processes import REPO, Row, Settings
from examples.benchmarks.gpu_parts.report import judge
from hypernet.training.memory_counting import PeakMemory
from hypernet.training.memory_peaks import MemoryNeeds, memory_peaks
from hypernet.utils.errors import reason

GIB = 2**30
STEPS = 10  # to time, after a few others
LIMITS = {  # targets: peaks in GiB of a step of batch 1
    ("sd15", "ours, checkpointing"): 4.0,
    ("sd15", "ours, smallest"): 2.5,
    ("sdxl", "ours, checkpointing"): 8.0,
    ("sdxl", "ours, smallest"): 6.0,
}
MOST_OVER_FLOOR, LEAST_UNDER_WEBUI = 1.10, 2.0


def half_precision(device: str) -> str:
    """Return the name of the half precision that suits the device; float32 on a CPU."""
    if device == "cpu":
        return "float32"
    return "bfloat16" if device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "float16"


def step_arguments(settings: Settings, model: str, batch_size: int, steps: int) -> argparse.Namespace:
    """Return the arguments of examples/benchmarks/step.py for this device."""
    flags = [f"--model={model}", f"--batch_size={batch_size}", f"--steps={steps}", f"--device={settings.device}"]
    flags += [f"--dtype={half_precision(settings.device)}", *(["--size=64"] if settings.quick else [])]
    return step.parse_arguments(flags)


def time_ways(settings: Settings, model: str, ways: Sequence[str], batch_sizes: Sequence[int] = (1,)) -> Iterator[Row]:
    """Yield time and peak memory of a training step for each batch size and way; the first way is the floor."""
    shape = "quickstart" if settings.quick else model
    if settings.quick and model == "sdxl":  # the same steps as sd15's
        ways = (ways[0], ways[-1])
    for batch_size in batch_sizes:
        args = step_arguments(settings, shape, batch_size, 1 if settings.quick else STEPS)
        precision, seconds = str(args.dtype).removeprefix("torch."), {}
        for way in ways:
            row = {"batch": batch_size, "precision": precision, "way": way}
            if settings.quick and settings.device == "cpu" and "compiled" in way:
                yield {**row, "problem": "needs a GPU: compiling takes minutes on a CPU"}
                continue
            try:
                seconds[way], memory = step.time_way(args, "training", way)
            except Exception as error:  # out of memory, a kernel that is missing, a compiler that is missing
                yield {**row, "problem": reason(error.with_traceback(None))}
                free_memory()
                continue
            row |= {"ms": 1000 * seconds[way], "x floor": ratio(seconds, way, ways[0])}
            row |= {"GiB": memory / GIB} if memory else {}
            yield row if settings.quick else with_target(row, model, seconds)


def ratio(seconds: dict[str, float], way: str, base: str) -> float | None:
    """Return the time of a way relative to another's; None if that could not be measured."""
    return seconds[way] / seconds[base] if base in seconds else None


def with_target(row: Row, model: str, seconds: dict[str, float]) -> Row:
    """Return the row with the target of its way, if there is one."""
    way = row["way"]
    if way in ("ours, linear", "ours, compiled") and row["x floor"]:
        return judge(row, "x floor", MOST_OVER_FLOOR)
    if way == "webui" and "ours, linear" in seconds:
        return judge({**row, "x ours": seconds[way] / seconds["ours, linear"]}, "x ours", LEAST_UNDER_WEBUI, False)
    if (model, way) in LIMITS and "GiB" in row:
        return judge(row, "GiB", LIMITS[model, way])
    return row


def free_memory() -> None:
    """Give the memory of deleted tensors back to the GPU."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- Presets


class AllocatedMemory:
    """The peak of PyTorch's allocator on a CUDA device, beyond what was allocated at first."""

    def __init__(self) -> None:
        free_memory()
        self.before = torch.cuda.memory_allocated()
        self.restart()

    @property
    def peak(self) -> int:
        """The most bytes held at once since `restart`."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - self.before

    def restart(self) -> None:
        """Forget the peak so far."""
        torch.cuda.reset_peak_memory_stats()


@contextlib.contextmanager
def measure_memory() -> Iterator[AllocatedMemory]:
    """Measure the memory that a CUDA device takes in the `with` block."""
    yield AllocatedMemory()


def preset_memory(settings: Settings) -> Iterator[Row]:
    """Yield for each preset the memory counted and measured, in GiB, of encoding, a step and a preview."""
    if settings.quick:
        needs_by_preset = {"quickstart": quickstart_needs()}
    else:
        settings.require_cuda()
        needs_by_preset = {preset: presets.needs_of(preset) for preset in presets.PRESETS}
    for preset, needs in needs_by_preset.items():
        counted = memory_peaks(needs)
        row = {"preset": preset} | {f"{part}, counted": size / GIB for part, size in vars(counted).items()}
        if settings.device == "cuda" and counted.highest > torch.cuda.mem_get_info()[0]:
            yield {**row, "problem": "more than this GPU has left"}
            continue
        meter = measure_memory if settings.device == "cuda" else PeakMemory
        try:
            measured = memory_peaks(needs, meter, settings.device)
        except Exception as error:
            yield {**row, "problem": reason(error.with_traceback(None))}
        else:
            yield {**row, **{f"{part}, measured": size / GIB for part, size in vars(measured).items()}}
        free_memory()


def quickstart_needs() -> MemoryNeeds:
    """Return the needs of the quickstart's model at 64 x 64 pixels."""
    model = Path(REPO, "examples", "quickstart", "model")
    unet, vae = (
        UNet2DConditionModel.load_config(model, subfolder="unet"),
        AutoencoderKL.load_config(model, subfolder="vae"),
    )
    widths = sorted({*unet["block_out_channels"], unet["cross_attention_dim"]})
    return MemoryNeeds(unet, vae, {"widths": tuple(widths)}, size=(64, 64), preview_size=(64, 64), checkpointing=True)
