#!/usr/bin/env python
"""Check training on this machine's GPU in at most eight minutes, and write a report to post.

    python examples/benchmarks/gpu_check.py
    python examples/benchmarks/gpu_check.py --parts sd15 sd15_compiled --minutes 20
    python examples/benchmarks/gpu_check.py --device cpu --quick      # only tests that the script works: tiny shapes

It needs no network, no model and nothing beyond requirements.txt: it trains the quickstart, and for the rest takes
UNets of the real shapes with random weights. Each part runs in its own process with a time limit, so one that crashes
or hangs does not affect the others. The most informative parts run first; those that --minutes leaves no time for are
not run. A slow card needs more: with --minutes 16, each part may take twice as long. The tables appear as parts finish,
and in output/gpu_check/report.md and report.json. The exit code is 1 if a part has failed.

machine          GPU, memory, driver, versions
quickstart_fp16  the quickstart in fp16: speed, memory, and what its classifier sees in samples, if there is one
quickstart_bf16  the same in bf16
sd15             a step of Stable Diffusion 1.5's shape, 512 x 512, batch 1 and 4: time, and measured peak memory
quickstart_cpu   the quickstart's first steps on the CPU: losses and previews beside those of the GPU
loop             a step of the training loop against the bare step; synchronizations with the GPU per step
resume           a resumed run against an uninterrupted one, without and with PyTorch's deterministic algorithms
sdxl             a step of SDXL's shape, 1024 x 1024
sd15_options     gradient checkpointing, int8, nf4, 8-bit AdamW, all of them
sdxl_options     the same for SDXL
presets          the memory of each preset: encoding, step and preview, measured against counted
two_gpus         two processes over NCCL against one
sd15_compiled    --compile, against the floor compiled
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

from examples.benchmarks.gpu_parts.processes import ON_CPU, Outcome, Part, Settings, prepare_processes, run_part
from examples.benchmarks.gpu_parts.report import Report, part_text, write_report
from hypernet.cli.script import ScriptParser, check_output_folder, quiet_libraries, run_script
from hypernet.utils.errors import UserError

MODELS = {"sd15": "Stable Diffusion 1.5, 512 x 512", "sdxl": "SDXL, 1024 x 1024"}
PLAIN = ("floor", "ours, linear", "ours, swish", "webui", "lora")
SAVING = ("floor", "ours, checkpointing", "ours, int8", "ours, nf4", "ours, 8-bit AdamW", "ours, smallest")
COMPILED = ("floor, compiled", "ours, compiled")
MINUTES = 8
PARTS = {  # the most informative first; the seconds are limits within MINUTES, several times what a T4 should need
    "machine": Part("machine.facts", "The machine", 90),
    "quickstart_fp16": Part("quickstart.in_half_precision", "The quickstart in fp16", 120, {"precision": "fp16"}),
    "quickstart_bf16": Part("quickstart.in_half_precision", "The quickstart in bf16", 120, {"precision": "bf16"}),
    "sd15": Part("steps.time_ways", MODELS["sd15"], 120, {"model": "sd15", "ways": PLAIN, "batch_sizes": (1, 4)}),
    "quickstart_cpu": Part("quickstart.on_cpu", "The quickstart beside the CPU's", 100, environment=ON_CPU),
    "loop": Part("training.loop", "The training loop", 60),
    "resume": Part("training.resume", "Resumed and uninterrupted runs", 90),
    "sdxl": Part("steps.time_ways", MODELS["sdxl"], 120, {"model": "sdxl", "ways": PLAIN}),
    "sd15_options": Part("steps.time_ways", f"{MODELS['sd15']}: options", 90, {"model": "sd15", "ways": SAVING}),
    "sdxl_options": Part("steps.time_ways", f"{MODELS['sdxl']}: options", 120, {"model": "sdxl", "ways": SAVING}),
    "presets": Part("steps.preset_memory", "Memory of the presets, GiB counted and measured", 120),
    "two_gpus": Part("training.two_gpus", "Two GPUs over NCCL", 90),
    "sd15_compiled": Part("steps.time_ways", f"{MODELS['sd15']}: compiled", 240, {"model": "sd15", "ways": COMPILED}),
}
CPU_PATIENCE = 5  # times the limit, on a CPU
MIN_SECONDS = 5  # a part is not begun with less time left


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options.

    Raises:
        UserError: for an unknown part, minutes that are not positive, or a device that is missing.
    """
    parser = ScriptParser(__doc__)
    parser.add_argument("--device", choices=("cuda", "mps", "cpu"), help="default: cuda or mps, whichever there is")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="default: all")
    minutes_help = "of the whole check; with more than the default %(default)s, each part may take longer, too"
    parser.add_argument("--minutes", type=float, default=MINUTES, help=minutes_help)
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few steps; the figures mean nothing")
    parser.add_argument("--output_dir", type=Path, default=Path("output/gpu_check"), help="default: %(default)s")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.parts or [] if name not in PARTS]:
        raise UserError(f"--parts {unknown[0]}: there is no such part; choose from {', '.join(PARTS)}")
    if not args.minutes > 0:
        raise UserError(f"--minutes {args.minutes:g}: it must be more than 0")
    check_output_folder(args.output_dir, f"--output_dir {args.output_dir}")
    args.device = find_device(args.device)
    return args


def find_device(wanted: str | None) -> str:
    """Return the device that is wanted, by default "cuda" or "mps".

    Raises:
        UserError: if it is missing.
    """
    if wanted == "cpu":
        return wanted
    import torch  # after --help, since it takes seconds

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    for device, is_there in found.items():
        if is_there and wanted in (None, device):
            return device
    problem = f"PyTorch {torch.__version__} finds no {'GPU' if wanted is None else 'such device'}"
    remedy = "install its build for your GPU" if wanted == "mps" else "install its CUDA build"
    option = f"--device {wanted}: " if wanted else ""
    raise UserError(f"{option}{problem}; {remedy}, or check the CPU with --device cpu --quick")


def choose_parts(names: Sequence[str] | None, quick: bool) -> dict[str, Part]:
    """Return the parts of these names, by default all; in a quick check, titles say what stands in for the models."""
    parts = {name: part for name, part in PARTS.items() if name in (names or PARTS)}
    for name, part in parts.items():
        if quick and "model" in part.arguments:
            title = f"The quickstart's UNet, 64 x 64, in place of {part.title}"
            parts[name] = dataclasses.replace(part, title=title)
    return parts


def run_parts(parts: Mapping[str, Part], settings: Settings, minutes: float) -> Report:
    """Run the parts one after another; print each one's table and write the report anew as it finishes."""
    started = time.monotonic()
    report = Report(" ".join(["python", "examples/benchmarks/gpu_check.py", *sys.argv[1:]]), settings)
    prepare_processes(settings)
    for name, part in parts.items():
        left = 60 * minutes - (time.monotonic() - started)
        if left < MIN_SECONDS:
            outcome = Outcome("not run", f"--minutes {minutes:g} left no time")
        else:
            limit = part.seconds * (CPU_PATIENCE if settings.device == "cpu" else 1) * max(1, minutes / MINUTES)
            outcome = run_part(name, part, settings, min(limit, left))
            if outcome.status == "timed out" and left < limit:
                message = f"stopped after {left:.0f} s, when --minutes {minutes:g} ended"
                outcome = dataclasses.replace(outcome, status="cut short", message=message)
        report.parts[name] = (part, outcome)
        report.seconds = time.monotonic() - started
        write_report(report, settings.folder)
        print(part_text(name, part.title, outcome), flush=True)
    return report


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    settings = Settings(args.device, args.quick, args.output_dir.resolve())
    report = run_parts(choose_parts(args.parts, args.quick), settings, args.minutes)
    print(
        f"{report.summary()}\n{args.output_dir / 'report.md'} contains these tables; report.json contains the same data."
    )
    if args.device != "cpu" and not args.quick:
        print("Please post report.md as an issue: there may be no figures for this GPU yet.")
    sys.exit(report.has_failures)


if __name__ == "__main__":
    quiet_libraries()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    run_script(main)
