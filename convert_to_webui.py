#!/usr/bin/env python
"""Convert, inspect, repair and average hypernetworks of this project and the WebUI, and export them as LoRAs.

Convert. The ending of TARGET chooses the format: .pt (WebUI, ComfyUI), .safetensors, or a folder (diffusers):
    python convert_to_webui.py output/my_style                                # writes output/my_style/my_style.pt
    python convert_to_webui.py output/my_style/checkpoints/step-005000 my_style-5000.pt --with_optimizer
    python convert_to_webui.py old_style.pt old_style.safetensors
    python convert_to_webui.py my_style.pt my_style_small.pt --half --for_inference

Inspect and repair:
    python convert_to_webui.py --inspect *.pt                                 # content, health, compatible programs
    python convert_to_webui.py old_style.pt --fix                             # keeps the old file as old_style.pt.bak
    python convert_to_webui.py my_style.pt --rename better_name

Average several, or export a LoRA for programs without hypernetworks:
    python convert_to_webui.py both.pt --average one.pt:0.6 other.pt:0.4
    python convert_to_webui.py my_style.pt lora.safetensors --to_lora 64 --model MODEL --prompts "a cat" "a house"

Prompts refer to a .pt by its file name: my_style.pt is `<hypernet:my_style:1>`.
"""

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

if __name__ == "__main__":
    quiet_libraries()  # before diffusers is imported

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch

import hypernet
from hypernet.cli.conversion_targets import check_target, choose_target, default_target, is_single_file
from hypernet.cli.option_notes import strength_note
from hypernet.formats.inspect import describe, inspect, overview
from hypernet.formats.load_save import find_weights
from hypernet.formats.repair import repair
from hypernet.formats.webui import EXTENSION
from hypernet.formats.webui_optimizer import find_optimizer, optim_path, save_optim
from hypernet.modeling.from_weights import without_dropout
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.utils.errors import UserError
from hypernet.utils.numbers import meant_number

MAX_DETAILED = 3  # for more files, --inspect prints a table
MODES: dict[str | None, set[str]] = {  # what the script does -> the options that belong to it
    "inspect": {"json"},
    "average": {"half", "overwrite"},
    "to_lora": {"half", "model", "prompts", "steps", "strength", "overwrite"},
    "fix": set(),
    None: {"with_optimizer", "half", "for_inference", "rename", "overwrite"},  # convert
}


# fmt: off
def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("source", nargs="?", help="trained folder, checkpoint, .safetensors, .pt or Hub id; with --average the file to write")
    add("target", nargs="?", type=Path, help="what to write; default: NAME.pt in the trained folder")
    add("--with_optimizer", action="store_true", help="also write TARGET.optim, to continue training in the WebUI")
    add("--half", action="store_true", help="write float16 weights, half the size; default: as in SOURCE")
    add("--for_inference", action="store_true", help="remove dropout, which ComfyUI leaves active")
    add("--overwrite", action="store_true", help="replace TARGET if it exists")
    add("--rename", metavar="NAME", help="write a copy called NAME beside the file")
    add("--fix", action="store_true", help="rewrite a .pt so that every program reads it alike; keeps the old one as .bak")
    add("--inspect", nargs="+", metavar="FILE", help="show what files hold, their health, and which programs read them")
    add("--json", action="store_true", help="with --inspect: as JSON")
    add("--average", nargs="+", metavar="FILE:WEIGHT", help="write the weighted average of hypernetworks of one structure")
    add("--to_lora", type=int, metavar="RANK", help="write a LoRA of this rank: TARGET in kohya's naming, TARGET_peft in PEFT's")
    add("--model", help="with --to_lora: folder or Hub id of the base model; default: that of the run")
    add("--prompts", nargs="+", metavar="PROMPT", help="with --to_lora: prompts to generate, to record what the hypernetwork gets; default: the run's validation prompts")
    add("--steps", type=int, help="with --to_lora: sampling steps for these; default: 20")
    add("--strength", type=float, help="with --to_lora: strength of the hypernetwork that is strength 1 of the LoRA; default: 1")
    args = parser.parse_args(arguments)
    check_options(args)
    return args


# fmt: on
def check_options(args: argparse.Namespace) -> None:
    """Raise UserError for options that do not go together, or if the file to work on is missing."""
    given = {option for option, value in vars(args).items() if value is not None and value is not False}
    modes = [mode for mode in MODES if mode in given]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]}: choose one")
    mode = modes[0] if modes else None
    for option in given & set().union(*MODES.values()) - MODES[mode]:
        home = next(other for other, options in MODES.items() if option in options)
        raise UserError(f"--{option}: it has no effect " + (f"with --{mode}" if mode else f"without --{home}"))
    if mode == "average" and (args.source is None or args.target is not None):
        problem = f"{args.target} is one too many" if args.target else "the file to write is missing"
        raise UserError(f"--average: {problem}; as in: convert_to_webui.py both.pt --average one.pt:0.6 other.pt:0.4")
    if mode != "inspect" and args.source is None:
        raise UserError("SOURCE is missing: a trained folder or a file; --help shows commands")
    if mode == "inspect" and args.source is not None:
        raise UserError(f"--inspect: name all files after it, {args.source} too")
    for option, value in (("to_lora", args.to_lora), ("steps", args.steps)):
        if value is not None and value < 1:
            raise UserError(f"--{option} {value}: it must be 1 or more")
    if args.strength is not None and not math.isfinite(args.strength):
        raise UserError(f"--strength {args.strength}: it must be a finite number")
    if note := strength_note([args.strength or 0]):
        print(f"note: {note}")


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    if args.inspect:
        inspect_files(args.inspect, args.json)
    elif args.average:
        average(args.average, Path(args.source), args.half, args.overwrite)
    elif args.to_lora is not None:
        from hypernet.cli.lora_export import export_lora  # imports pipelines, which takes seconds

        export_lora(
            args.source,
            args.target,
            args.to_lora,
            model=args.model,
            prompts=args.prompts,
            steps=args.steps or 20,
            strength=1.0 if args.strength is None else args.strength,
            half=args.half,
            overwrite=args.overwrite,
        )
    elif args.fix:
        fix(args.source, args.target)
    else:
        convert(args)


def convert(args: argparse.Namespace) -> None:
    target = choose_target(args.source, args.target, args.rename, args.overwrite)
    hypernetwork = hypernet.load(args.source)
    state = optimizer_to_write(args, target, hypernetwork) if args.with_optimizer else None
    if args.for_inference:
        hypernetwork = without_dropout(hypernetwork)
    if target is None:
        target = default_target(Path(args.source), hypernetwork.config.name, args.overwrite)
    write(hypernetwork, target, args.half)
    if state is not None:
        save_optim(state, target)
        print(f"{optim_path(target)}: AdamW's state, to continue training in the WebUI")


def optimizer_to_write(args: argparse.Namespace, target: Path | None, hypernetwork: Hypernetwork) -> dict[str, Any]:
    """Return AdamW's state to write beside `target`.

    Raises:
        UserError: if there is none, or it cannot be written there.
    """
    state, _ = find_optimizer(args.source, hypernetwork)
    if target is not None and target.suffix.lower() != ".pt":
        raise UserError(f"--with_optimizer: the WebUI expects it beside a .pt, and {target} is not one")
    if hypernetwork.config.skip_connection == "linear":
        raise UserError("--with_optimizer: the WebUI's extension does not train linear skip connections")
    if args.for_inference or args.half:
        option = "for_inference" if args.for_inference else "half"
        raise UserError(f"--with_optimizer: training needs dropout and float32; leave --{option} out")
    if state is None:
        problem = f"{Path(args.source)} has no optimizer state; name a checkpoint such as checkpoints/step-000500"
        raise UserError(f"--with_optimizer: {problem}")
    if target is not None and optim_path(target).exists() and not args.overwrite:
        raise UserError(f"{optim_path(target)}: it already exists; name another TARGET, or add --overwrite")
    return state


def write(hypernetwork: Hypernetwork, target: Path, half: bool) -> None:
    """Save in the precision of the source file, or in float16 if `half`, and print what was saved."""
    hypernetwork.register_to_config(name=target.stem if is_single_file(target) else target.resolve().name)
    dtype = torch.float16 if half or hypernetwork.stored_dtype is torch.float16 else torch.float32
    try:
        hypernet.save(hypernetwork, target, dtype)
    except OSError as error:
        raise UserError(f"{target}: it cannot be written ({error.strerror or error})") from None
    config, size = hypernetwork.config, find_weights(target).stat().st_size
    print(f"{target}: {'' if is_single_file(target) else 'folder, '}step {config.step}, {size / 2**20:.1f} MiB")
    if not is_single_file(target):
        print(f"note: {target} is a folder for diffusers; for the WebUI and ComfyUI, write {target}.pt")
    elif config.skip_connection is not None and target.suffix.lower() == ".pt":
        print(f"note: {target} has skip connections: the WebUI needs {EXTENSION} to apply it")


def inspect_files(files: list[str], as_json: bool) -> None:
    """Print a report on each file.

    Raises:
        UserError: after the reports, if some files are not hypernetworks.
    """
    reports: list[dict[str, Any]] = []
    for file in files:
        try:
            reports.append(inspect(file))
        except hypernet.NotAHypernetwork as error:
            reports.append({"file": file, "error": str(error)})
    refused = [report["error"] for report in reports if "error" in report]
    if as_json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    elif len(refused) == len(reports) == 1:
        raise UserError(refused[0])
    elif len(reports) > MAX_DETAILED:
        print("\n".join([*refused, overview([report for report in reports if "error" not in report])]))
    else:
        print("\n\n".join(report.get("error") or describe(report) for report in reports))
    if refused:
        raise UserError(f"{len(refused)} of {len(reports)} files cannot be read as hypernetworks")


def fix(source: str, target: Path | None) -> None:
    path = Path(source)
    if target is not None:
        hint = f"leave {target} out, or --fix (a conversion repairs as well)"
        raise UserError(f"--fix {path}: it repairs the file in place; {hint}")
    if path.suffix.lower() != ".pt":
        hypernet.load(source)  # a wrong source is reported first
        raise UserError(f"--fix {path}: only the WebUI's .pt files can need repair")
    repairs = repair(path)
    print(f"{path}: " + ("repaired: " + "; ".join(repairs) if repairs else "nothing to repair"))


def average(inputs: list[str], target: Path, half: bool, overwrite: bool) -> None:
    """Write the average of the hypernetworks in `inputs`, each FILE or FILE:WEIGHT."""
    files, weights = zip(*map(split_weight, inputs))
    check_target(target, overwrite, *files)
    if len(files) < 2:
        raise UserError("--average: name at least two hypernetworks, as in --average one.pt:0.6 other.pt:0.4")
    try:
        result = hypernet.average([hypernet.load(file) for file in files], weights)
    except hypernet.NotAHypernetwork:
        raise
    except ValueError as error:
        raise UserError(f"--average: {error}") from None
    print(" + ".join(f"{weight / sum(weights):.3g} x {file}" for file, weight in zip(files, weights)))
    result.stored_dtype = torch.float32
    write(result, target, half)


def split_weight(text: str) -> tuple[str, float]:
    """Split "one.pt:0.6" into ("one.pt", 0.6); the weight is 1 if there is none."""
    file, _, weight = text.rpartition(":")
    try:
        return (file, float(weight)) if file else (text, 1.0)
    except ValueError:
        if Path(file).exists():
            problem = f"{weight} is not a number; write {file}:{meant_number(weight) or 0.6}"
            raise UserError(f"--average {text}: {problem}") from None
        return text, 1.0  # the colon is part of the path


if __name__ == "__main__":
    run_script(main)
