#!/usr/bin/env python
"""What a training step costs, side by side: the frozen model's own, the WebUI's way, a LoRA's, and ours; and a sampling step.

    python examples/benchmarks/step.py                                     # the quickstart's model, some minutes on a laptop
    python examples/benchmarks/step.py --quick                             # the same, only the most telling
    python examples/benchmarks/step.py --model sd15 --count_only           # the true shape, without weights and in half precision
    python examples/benchmarks/step.py --model sdxl --count_only
    python examples/benchmarks/step.py --model sd15 --rounds 3             # on a CPU half an hour, 12 GB of memory

The ways take turns in one process, so that noise hits all of them alike; times are medians of ratios to the floor of the
same round (the quickstart's model is so small that much of its time goes into calling). FLOPs are torch's own count (two for
a multiply-add; convolutions, products, attention); FLOPs and memory are counted on tensors without data. Memory is the peak of a step's tensors (weights, gradients, moments, activations); on top
come CUDA's own share and the workspaces of its libraries. On a GPU it is measured, too.

A training step:
floor              the frozen UNet forward, and backward down to its input (a training need not go there)
webui              modules in every layer for itself, the text's too; attention not fused; every block computed twice
module by module   one hypernetwork, attached, with its modules computed as they are
ours, linear       the same (structure 1,2,1), with as few products as the counts in hypernet/modeling/linear_map.py say
ours, swish        with an activation, which leaves no choice but for the text
ours, checkpointing, int8, nf4, compiled    linear, with that option of the training
ours, smallest     nf4, 8-bit AdamW and checkpointing together
lora               rank 16 through PEFT on to_q, to_k, to_v and to_out, as diffusers' example trains it

A sampling step, two pictures in a batch as guidance has it: none, attached, swish (attached), and merged into the weights.
"""

import contextlib
import gc
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hypernet.cli.script import quiet_libraries

quiet_libraries()  # before diffusers is imported

import bitsandbytes
import torch
from torch.utils.flop_counter import FlopCounterMode

from examples.benchmarks.memory import MomentsIn8Bits, counted, norms_as_on_a_gpu
from examples.benchmarks.ways import TABLES, TRAINING, Ours, floor, is_fake, load_unet, make_inputs
from hypernet.cli.script import ScriptParser, run_script
from hypernet.utils.errors import UserError

SIZES = {"quickstart": 128, "sd15": 512, "sdxl": 1024}  # pixels a side
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    parser.add_argument(
        "--model", choices=SIZES, default="quickstart", help="random weights of the true shape but for quickstart"
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES), help="default: both")
    parser.add_argument("--batch_size", type=int, default=1, help="of the training step")
    parser.add_argument("--size", type=int, help="side of the pictures; default: 128, 512 or 1024")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="of the UNet and of the products; default: float32 if a CPU is timed, else bfloat16",
    )
    parser.add_argument("--rounds", type=int, default=10, help="default: %(default)s")
    parser.add_argument(
        "--ways",
        nargs="+",
        choices=TRAINING,
        metavar="WAY",
        help="of the training step; default: all but ours, compiled",
    )
    parser.add_argument("--quick", action="store_true", help="three rounds of floor, webui and ours, linear")
    parser.add_argument("--count_only", action="store_true", help="FLOPs and memory, no times")
    parser.add_argument("--json", type=Path, help="write the tables there, too")
    args = parser.parse_args(arguments)
    if min(args.batch_size, args.rounds, args.size or 1) < 1:
        raise UserError("--batch_size, --rounds and --size must be 1 or more")
    if (args.size or 64) % 64:
        raise UserError(f"--size {args.size}: it must be a multiple of 64")
    if args.quick:
        args.rounds, args.ways = min(args.rounds, 3), args.ways or ["webui", "ours, linear"]
    args.size = args.size or SIZES[args.model]
    times_a_cpu = not args.count_only and torch.device(args.device).type == "cpu"
    args.dtype = DTYPES[args.dtype or ("float32" if times_a_cpu else "bfloat16")]
    ways = args.ways or [way for way in TRAINING if way != "ours, compiled"]
    args.ways = ["floor", *(way for way in ways if way != "floor")]
    return args


# --- What is measured


def training_step(unet, is_floor, inputs, optimizer, dtype):
    """Forward, backward and update; the floor's backward goes down to the latents."""
    latents, timesteps, text, more = inputs
    latents = latents.detach().requires_grad_(is_floor)
    half = dtype is not torch.float32  # (in which nothing runs on the meta device, of which autocast knows nothing)
    with torch.autocast(latents.device.type, dtype) if half else contextlib.nullcontext():
        prediction = unet(latents, timesteps, text, **more).sample
    prediction.float().square().mean().backward()
    if optimizer is not None:
        optimizer.step()
        optimizer.zero_grad()


class Step:
    """A way, ready to make steps on a UNet of its own."""

    def __init__(self, args, prepare, trains: bool, device, dtype):
        self.unet, self.trains, self.dtype = load_unet(args.model, device, dtype), trains, dtype
        self.is_floor, self.optimizer, batch = prepare is floor, None, args.batch_size if trains else 2
        parameters = prepare(self.unet, dtype)
        self.inputs = make_inputs(self.unet, batch, args.size, device, dtype)
        if not trains and isinstance(prepare, Ours):
            for hypernetwork, _ in self.unet._hypernetworks.layers:
                hypernetwork.eval().requires_grad_(False)
        elif parameters and device != "meta" and getattr(prepare, "use_8bit_adam", False):
            self.optimizer = (MomentsIn8Bits if is_fake(self.unet) else bitsandbytes.optim.AdamW8bit)(parameters)
        elif parameters and device != "meta":
            self.optimizer = torch.optim.AdamW(parameters, fused=True)

    def __call__(self):
        if self.trains:
            training_step(self.unet, self.is_floor, self.inputs, self.optimizer, self.dtype)
        else:
            latents, timesteps, text, more = self.inputs
            with torch.set_grad_enabled(is_fake(self.unet)):  # without data no text can be recognised as that of before
                self.unet(latents, timesteps, text, **more)


def count_flops(args, table, way) -> int:
    step = Step(args, TABLES[table][way], table == "training", "meta", torch.float32)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def count_memory(args, table, way) -> int:
    """The most bytes that are held at once in a step, after one that has made gradients and moments."""
    with counted() as memory:
        step = Step(args, TABLES[table][way], table == "training", "cpu", args.dtype)
        if args.dtype is not torch.float32 and step.trains:  # where it samples, there is no autocast
            norms_as_on_a_gpu(step.unet)
        step()
        memory.peak = memory.now
        step()
    return memory.peak


def measure(args, table, ways) -> dict[str, dict]:
    """Way -> time ratio to the first way's, pictures a second and, on a GPU, the peak of its memory."""
    seconds, memory = {way: [] for way in ways}, {}
    for _ in range(args.rounds):
        for way in ways:
            torch.manual_seed(0)
            step = Step(args, TABLES[table][way], table == "training", args.device, args.dtype)
            step()  # takes memory for gradients and moments, compiles
            synchronize(args.device)
            started = time.perf_counter()
            step()
            memory[way] = synchronize(args.device)
            seconds[way].append(time.perf_counter() - started)
            del step
            gc.collect()  # attention layers and what is attached to them hold one another
    pictures = args.batch_size if table == "training" else 1
    return {
        way: {
            "time_ratio": statistics.median(mine / base for mine, base in zip(seconds[way], seconds[ways[0]])),
            "images_per_second": pictures / statistics.median(seconds[way]),
            "memory_measured": memory[way],
        }
        for way in ways
    }


def synchronize(device) -> int | None:
    """Wait for a GPU; the peak of its memory since the last time."""
    if torch.device(device).type != "cuda":
        return None
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def describe(row) -> str:
    line = f"{row['way']:20} {row['flops'] / 1e9:9.1f} GFLOP {row['flops_ratio']:6.3f}"
    line += f"   {row['memory_counted'] / 2**30:6.2f} GiB counted"
    if "time_ratio" in row:
        line += f"   time {row['time_ratio']:5.2f}   {row['images_per_second']:7.3f} /s"
        line += f"   {row['memory_measured'] / 2**30:6.2f} GiB measured" if row["memory_measured"] else ""
    return line


def main(arguments=None):
    args = parse_arguments(arguments)
    tables = {}
    for table in args.tables:
        ways = args.ways if table == "training" else list(TABLES[table])
        precision = str(args.dtype).removeprefix("torch.")
        print(f"A {table} step of {args.model}, {args.size} x {args.size}, {precision}", flush=True)
        flops = {way: count_flops(args, table, way) for way in ways}
        rows = {way: {"way": way, "flops": flops[way], "flops_ratio": flops[way] / flops[ways[0]]} for way in ways}
        for way in ways:
            rows[way]["memory_counted"] = count_memory(args, table, way)
        for way, measured in ({} if args.count_only else measure(args, table, ways)).items():
            rows[way] |= measured
        tables[table] = list(rows.values())
        print(*map(describe, tables[table]), sep="\n", flush=True)
    if args.json:
        about = {key: str(value) for key, value in vars(args).items()}
        args.json.write_text(json.dumps({"about": about, "torch": torch.__version__, **tables}, indent=2))


if __name__ == "__main__":
    run_script(main)
