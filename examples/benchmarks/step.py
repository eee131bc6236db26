#!/usr/bin/env python
"""Compare the cost of a training step and of a sampling step: FLOPs, memory and time.

    python examples/benchmarks/step.py                                # the quickstart's model; some minutes on a laptop
    python examples/benchmarks/step.py --quick                        # the same, only the most important ways
    python examples/benchmarks/step.py --model sd15 --count_only      # the real shape, on fake tensors in bfloat16
    python examples/benchmarks/step.py --model sdxl --count_only
    python examples/benchmarks/step.py --model sd15 --rounds 3        # half an hour on a CPU, 12 GB of memory

Times are medians of ratios to the floor of the same round: all ways take turns in one process, so noise affects them
alike. (The quickstart's model is so small that much of its time is call overhead.) FLOPs are counted by PyTorch: two
per multiply-add; convolutions, matrix products, attention. Memory is the peak of a step's tensors (weights, gradients,
moments, activations), counted on fake tensors; CUDA itself and the workspaces of its libraries come on top. On a GPU
the peak is also measured.

A training step:
floor              forward and backward through the frozen UNet, down to its input (training need not go that far)
floor, compiled    the same with torch.compile
webui              the WebUI's way: modules in every layer, plain attention, every block recomputed
module by module   one hypernetwork attached, its modules computed one after the other
ours, linear       the same (structure 1,2,1) with the fewest products, see hypernet/modeling/linear_map.py
ours, swish        with an activation, so that only the text's contexts can be shared
ours, checkpointing, 8-bit AdamW, int8, nf4, compiled    linear, with that option of the trainer
ours, prior        linear, with --prior_weight
ours, smallest     nf4, 8-bit AdamW and checkpointing together
lora               rank 16 through PEFT on to_q, to_k, to_v and to_out, as in diffusers' example

A sampling step, a batch of two as classifier-free guidance needs: none, attached, swish (attached), fused.
"""

import argparse
import contextlib
import gc
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import bitsandbytes
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmarks.ways import (
    TABLES,
    TRAINING,
    Inputs,
    Ours,
    Way,
    compiled_floor,
    floor,
    is_fake,
    load_unet,
    make_inputs,
)
from hypernet.cli.generation_options import parse_count
from hypernet.modeling.attachment import set_strength
from hypernet.training.memory_counting import (
    ADAMW_8BIT_STATE,
    FakeOptimizer,
    compute_norms_in_float32,
    count_peak_memory,
)
from hypernet.utils.errors import UserError

SIZES = {"quickstart": 128, "sd15": 512, "sdxl": 1024}  # pixels a side
MAX_SECONDS = 3  # to time steps for, if there are several
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options; `dtype` becomes a torch.dtype, and `ways` begins with the floor.

    Raises:
        UserError: for options that cannot work.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument("--model", choices=SIZES, default="quickstart", help="shape of the UNet; weights are random")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: both")
    parser.add_argument("--batch_size", type=parse_count, default=1, help="of the training step; default: 1")
    parser.add_argument("--size", type=parse_count, help="side of the images in pixels; default: 128, 512 or 1024")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    dtype_help = "of the UNet and the products; default: float32 when timing a CPU, else bfloat16"
    parser.add_argument("--dtype", choices=DTYPES, help=dtype_help)
    parser.add_argument("--rounds", type=parse_count, default=10, help="default: %(default)s")
    parser.add_argument("--steps", type=parse_count, default=1, help="to time at once; default: %(default)s")
    ways_help = "ways to train; default: all but the compiled ones"
    parser.add_argument("--ways", nargs="+", choices=TRAINING, metavar="WAY", help=ways_help)
    parser.add_argument("--quick", action="store_true", help="three rounds of floor, webui and ours, linear")
    parser.add_argument("--count_only", action="store_true", help="FLOPs and memory, no times")
    parser.add_argument("--json", type=Path, help="also write the tables to this file")
    args = parser.parse_args(arguments)
    if (args.size or 64) % 64:
        raise UserError(f"--size {args.size}: it must be a multiple of 64")
    if args.quick:
        args.rounds, args.ways = min(args.rounds, 3), args.ways or ["webui", "ours, linear"]
    args.size = args.size or SIZES[args.model]
    times_a_cpu = not args.count_only and torch.device(args.device).type == "cpu"
    args.dtype = DTYPES[args.dtype or ("float32" if times_a_cpu else "bfloat16")]
    ways = args.ways or [way for way in TRAINING if "compiled" not in way]
    args.ways = ["floor", *(way for way in ways if way != "floor")]
    return args


# --- Steps


def training_step(
    unet: UNet2DConditionModel,
    is_floor: bool,
    inputs: Inputs,
    optimizer: Any,
    dtype: torch.dtype,
    prior: Inputs | None = None,
) -> None:
    """Run forward, backward and update; the floor's backward pass reaches the latents.

    Args:
        prior: the inputs of prior preservation, as `hypernet.training.prior` computes it.
    """
    half = dtype is not torch.float32  # never on the meta device, which autocast does not support
    for each in filter(None, (inputs, prior)):
        latents, timesteps, text, more = each
        latents = latents.detach().requires_grad_(is_floor)
        with torch.autocast(latents.device.type, dtype) if half else contextlib.nullcontext():
            if each is prior:
                set_strength(unet, 0.0)
                with torch.no_grad():
                    unet(latents, timesteps, text, **more)
                set_strength(unet, 1.0)
            prediction = unet(latents, timesteps, text, **more).sample
        prediction.float().square().mean().backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


class Step:
    """A way to train or sample, ready to run steps on a UNet of its own."""

    def __init__(self, args: argparse.Namespace, way: Way, trains: bool, device: str, dtype: torch.dtype):
        self.unet, self.trains, self.dtype = load_unet(args.model, device, dtype), trains, dtype
        self.is_floor, self.optimizer = way in (floor, compiled_floor), None
        parameters = way(self.unet, dtype)
        self.inputs = make_inputs(self.unet, args.batch_size if trains else 2, args.size, device, dtype)
        self.prior: Inputs | None = None
        if getattr(way, "prior", False):
            self.prior = make_inputs(self.unet, max(1, args.batch_size // 2), args.size, device, dtype)
        if not trains and isinstance(way, Ours):
            for hypernetwork, _ in self.unet._hypernetworks.layers:
                hypernetwork.eval().requires_grad_(False)
        elif parameters and device != "meta" and getattr(way, "use_8bit_adam", False):
            fakes = is_fake(self.unet)
            self.optimizer = (
                FakeOptimizer(parameters, ADAMW_8BIT_STATE) if fakes else bitsandbytes.optim.AdamW8bit(parameters)
            )
        elif parameters and device != "meta":
            self.optimizer = torch.optim.AdamW(parameters, fused=True)

    def __call__(self) -> None:
        if self.trains:
            training_step(self.unet, self.is_floor, self.inputs, self.optimizer, self.dtype, self.prior)
        else:
            latents, timesteps, text, more = self.inputs
            # without data the text cannot be compared with the cached one; while gradients are on, nothing is cached
            with torch.set_grad_enabled(is_fake(self.unet)):
                self.unet(latents, timesteps, text, **more)


# --- Measurements


def count_flops(args: argparse.Namespace, table: str, way: str) -> int:
    """Return the FLOPs of a step."""
    step = Step(args, TABLES[table][way], table == "training", "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def count_memory(args: argparse.Namespace, table: str, way: str) -> int:
    """Return the peak memory of a step in bytes, after a first one has allocated gradients and moments."""
    with count_peak_memory() as memory:
        step = Step(args, TABLES[table][way], table == "training", "cpu", args.dtype)
        if args.dtype is not torch.float32 and step.trains:  # sampling runs without autocast
            compute_norms_in_float32(step.unet)
        step()
        memory.peak = memory.now
        step()
    return memory.peak


def measure(args: argparse.Namespace, table: str, ways: list[str]) -> dict[str, dict[str, Any]]:
    """Return for each way its time relative to the first way's, images per second and, on a GPU, its peak memory."""
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, int | None] = {}
    for _ in range(args.rounds):
        for way in ways:
            elapsed, memory[way] = time_way(args, table, way)
            seconds[way].append(elapsed)
    images = args.batch_size if table == "training" else 1
    return {
        way: {
            "time_ratio": statistics.median(own / base for own, base in zip(seconds[way], seconds[ways[0]])),
            "images_per_second": images / statistics.median(seconds[way]),
            "memory_measured": memory[way],
        }
        for way in ways
    }


def time_way(args: argparse.Namespace, table: str, way: str) -> tuple[float, int | None]:
    """Return the seconds of a step, the mean of `args.steps`, and its peak memory in bytes as `synchronize` does.

    Slow steps are timed less often, but at least once.
    """
    torch.manual_seed(0)
    step = Step(args, TABLES[table][way], table == "training", args.device, args.dtype)
    for _ in range(min(3, args.steps)):  # they allocate gradients and moments, and compile
        synchronize(args.device)
        started = time.perf_counter()
        step()
        synchronize(args.device)
    steps = max(1, min(args.steps, int(MAX_SECONDS / (time.perf_counter() - started))))
    started = time.perf_counter()
    for _ in range(steps):
        step()
    memory = synchronize(args.device)
    elapsed = (time.perf_counter() - started) / steps
    del step
    gc.collect()  # attention layers and what is attached to them form reference cycles
    return elapsed, memory


def synchronize(device: str) -> int | None:
    """Wait for a GPU; return the peak memory of a CUDA device in bytes since the last call, else None."""
    kind = torch.device(device).type
    if kind == "mps":
        torch.mps.synchronize()
    if kind != "cuda":
        return None
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def build_table(args: argparse.Namespace, table: str) -> list[dict[str, Any]]:
    """Return a row per way."""
    ways = args.ways if table == "training" else list(TABLES[table])
    rows: dict[str, dict[str, Any]] = {way: {"way": way, "flops": count_flops(args, table, way)} for way in ways}
    for way, row in rows.items():
        row["flops_ratio"] = row["flops"] / rows[ways[0]]["flops"]
        row["memory_counted"] = count_memory(args, table, way)
    for way, measured in ({} if args.count_only else measure(args, table, ways)).items():
        rows[way] |= measured
    return list(rows.values())


def describe(row: dict[str, Any]) -> str:
    """Return a row as a line of text."""
    line = f"{row['way']:20} {row['flops'] / 1e9:9.1f} GFLOP {row['flops_ratio']:6.3f}"
    line += f"   {row['memory_counted'] / 2**30:6.2f} GiB counted"
    if "time_ratio" in row:
        line += f"   time {row['time_ratio']:5.2f}   {row['images_per_second']:7.3f} /s"
        line += f"   {row['memory_measured'] / 2**30:6.2f} GiB measured" if row["memory_measured"] else ""
    return line


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    tables = {}
    for table in args.tables:
        precision = str(args.dtype).removeprefix("torch.")
        print(f"A {table} step of {args.model}, {args.size} x {args.size}, {precision}", flush=True)
        tables[table] = build_table(args, table)
        print(*map(describe, tables[table]), sep="\n", flush=True)
    if args.json:
        about = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(json.dumps({"about": about, "torch": torch.__version__, **tables}, indent=2))


if __name__ == "__main__":
    run_script(main)
