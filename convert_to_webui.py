#!/usr/bin/env python
"""Open, check, convert, mend and combine hypernetworks: those of this project, and any of the WebUI's.

Convert (what TARGET ends in says into what: .pt for the WebUI and ComfyUI, .safetensors or a folder for diffusers):
    python convert_to_webui.py output/my_style                                # writes output/my_style/my_style.pt
    python convert_to_webui.py output/my_style/checkpoints/step-005000 my_style-5000.pt --with_optimizer
    python convert_to_webui.py old_style.pt old_style.safetensors
    python convert_to_webui.py my_style.pt my_style_small.pt --half --for_inference

Check and mend:
    python convert_to_webui.py --inspect *.pt                                 # what it is, its health, who reads it
    python convert_to_webui.py old_style.pt --fix                             # keeps the old file as old_style.pt.bak
    python convert_to_webui.py my_style.pt --rename better_name

Combine, or turn into a LoRA that every program loads:
    python convert_to_webui.py both.pt --average one.pt:0.6 other.pt:0.4
    python convert_to_webui.py my_style.pt lora.safetensors --to_lora 64 --model MODEL --prompts "a cat" "a house"

A .pt file's name is the name that prompts use: my_style.pt is `<hypernet:my_style:1>`.
"""

from hypernet.cli.script import ScriptParser, quiet_libraries, run_script

quiet_libraries()  # before diffusers is imported

import json
import math
from pathlib import Path

import torch

import hypernet
from hypernet.cli.conversion_targets import check_target, choose_target, is_one_file, target_inside
from hypernet.formats.inspect import describe, inspect, overview
from hypernet.formats.load_save import find_weights
from hypernet.formats.repair import repair
from hypernet.formats.webui_optimizer import find_optimizer, optim_path, save_optim
from hypernet.modeling.hypernetwork import without_dropout
from hypernet.utils.errors import UserError

MOST_DETAILS = 3  # files of which --inspect tells everything; of more it gives an overview
MODES = {  # what can be asked for, and the options that go with it
    "inspect": {"json"},
    "average": {"half", "overwrite"},
    "to_lora": {"half", "model", "prompts", "steps", "strength", "overwrite"},
    "fix": set(),
    None: {"with_optimizer", "half", "for_inference", "rename", "overwrite"},  # converting
}


# fmt: off
def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("source", nargs="?", help="a trained folder, a checkpoint, a .safetensors, a .pt, or a Hub id; with --average the file to write")
    add("target", nargs="?", type=Path, help="what to write; default: NAME.pt in the trained folder")
    add("--with_optimizer", action="store_true", help="write TARGET.optim, too, to go on training in the WebUI")
    add("--half", action="store_true", help="weights in float16, half the size; default: as in SOURCE")
    add("--for_inference", action="store_true", help="without dropout, which ComfyUI leaves active")
    add("--overwrite", action="store_true", help="TARGET may exist, and is replaced")
    add("--rename", metavar="NAME", help="write a copy called NAME beside the file")
    add("--fix", action="store_true", help="write a .pt anew as every program expects it; the old one is kept as .bak")
    add("--inspect", nargs="+", metavar="FILE", help="tell what files are, their health, and who reads them")
    add("--json", action="store_true", help="with --inspect: as JSON")
    add("--average", nargs="+", metavar="FILE:WEIGHT", help="weighted average of hypernetworks of one structure")
    add("--to_lora", type=int, metavar="RANK", help="write a LoRA of this rank: TARGET in kohya's naming, TARGET_peft in PEFT's")
    add("--model", help="with --to_lora: folder or Hub id of the base model; default: that of the training")
    add("--prompts", nargs="+", metavar="PROMPT", help="with --to_lora: drawn to see what the hypernetwork gets; default: the training's previews")
    add("--steps", type=int, help="with --to_lora: sampling steps of these; default: 20")
    add("--strength", type=float, help="with --to_lora: of the hypernetwork, at which the LoRA has strength 1; default: 1")
    args = parser.parse_args(arguments)
    check_together(args)
    return args


# fmt: on
def check_together(args):
    """Raises: UserError for options that have no effect together, or have nothing to work on."""
    given = {option for option, value in vars(args).items() if value is not None and value is not False}
    modes = [mode for mode in MODES if mode in given]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]}: one at a time")
    mode = modes[0] if modes else None
    for option in given & set().union(*MODES.values()) - MODES[mode]:
        home = next(other for other, options in MODES.items() if option in options)
        raise UserError(f"--{option}: it has no effect " + (f"with --{mode}" if mode else f"without --{home}"))
    if mode == "average" and (args.source is None or args.target is not None):
        surplus = f"{args.target} is one too many" if args.target else "the file to write is missing"
        raise UserError(f"--average: {surplus}; as in: convert_to_webui.py both.pt --average one.pt:0.6 other.pt:0.4")
    if mode != "inspect" and args.source is None:
        raise UserError("the SOURCE is missing: a trained folder or a file; --help shows commands")
    if mode == "inspect" and args.source is not None:
        raise UserError(f"{args.source}: name all files behind --inspect")
    if mode == "to_lora" and (args.to_lora < 1 or args.steps is not None and args.steps < 1):
        raise UserError("--to_lora and --steps must be 1 or more")
    if args.strength is not None and not math.isfinite(args.strength):
        raise UserError(f"--strength {args.strength}: it must be a number")


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.inspect:
        inspect_files(args)
    elif args.average:
        average(args)
    elif args.to_lora is not None:
        from hypernet.cli.lora_export import export_lora  # pipelines take their time to be imported

        export_lora(args)
    elif args.fix:
        fix(args)
    else:
        convert(args)


def convert(args):
    target = choose_target(args.source, args.target, args.rename, args.overwrite)
    hypernetwork = hypernet.load(args.source)
    state = optimizer_to_write(args, target, hypernetwork) if args.with_optimizer else None
    if args.for_inference:
        hypernetwork = without_dropout(hypernetwork)
    if target is None:
        target = target_inside(Path(args.source), hypernetwork.config.name, args.overwrite)
    write(hypernetwork, target, args.half)
    if state is not None:
        save_optim(state, target)
        print(f"{optim_path(target)}: AdamW's state, for the WebUI to go on from")


def optimizer_to_write(args, target: Path | None, hypernetwork) -> dict:
    """AdamW's state that goes beside `target`. Raises: UserError if there is none, or it cannot go there."""
    state, _ = find_optimizer(args.source, hypernetwork)
    if target is not None and target.suffix.lower() != ".pt":
        raise UserError(f"--with_optimizer: the WebUI's optimizer lies beside a .pt, {target} is none")
    if args.for_inference or args.half:
        raise UserError("--with_optimizer: training goes on with dropout and in float32; leave out the other option")
    if state is None:
        problem = f"{Path(args.source)} has no optimizer; name a training state such as checkpoints/step-000500"
        raise UserError(f"--with_optimizer: {problem}")
    if target is not None and optim_path(target).exists() and not args.overwrite:
        raise UserError(f"{optim_path(target)}: there is one already; name another TARGET, or add --overwrite")
    return state


def write(hypernetwork, target: Path, half: bool):
    """Write and tell; in the precision that it was read in, unless `half`."""
    hypernetwork.register_to_config(name=target.stem if is_one_file(target) else target.resolve().name)
    dtype = torch.float16 if half or hypernetwork.stored_dtype is torch.float16 else torch.float32
    try:
        hypernet.save(hypernetwork, target, dtype)
    except OSError as error:
        raise UserError(f"{target}: it cannot be written ({error.strerror or error})") from None
    config, size = hypernetwork.config, find_weights(target).stat().st_size
    print(f"{target}: {config.name}, step {config.step}, {size / 2**20:.1f} MiB")


def inspect_files(args):
    """Everything about each file; a file that is none is said in its place, and makes the command fail at its end."""
    reports = []
    for file in args.inspect:
        try:
            reports.append(inspect(file))
        except hypernet.NotAHypernetwork as error:
            reports.append({"file": file, "error": str(error)})
    refused = sum("error" in report for report in reports)
    if args.json:
        print(json.dumps(reports, indent=2, allow_nan=False))
    elif refused == len(reports) == 1:
        raise UserError(reports[0]["error"])
    elif len(reports) > MOST_DETAILS:
        print(*[report["error"] for report in reports if "error" in report], sep="\n", end="\n" if refused else "")
        print(overview([report for report in reports if "error" not in report]))
    else:
        print("\n\n".join(report.get("error") or describe(report) for report in reports))
    if refused:
        raise UserError(f"{refused} of {len(reports)} cannot be read as a hypernetwork")


def fix(args):
    source = Path(args.source)
    if args.target is not None:
        raise UserError(
            f"--fix {source}: it mends the file in its place; leave {args.target} out, or --fix (converting mends)"
        )
    if source.suffix.lower() != ".pt":
        hypernet.load(args.source)  # which tells if it is none
        raise UserError(f"--fix {source}: only the WebUI's .pt files can need it")
    mended = repair(source)
    print(f"{source}: " + ("mended: " + "; ".join(mended) if mended else "nothing to mend"))


def average(args):
    files, weights = zip(*map(split_weight, args.average))
    target = Path(args.source)
    check_target(target, args.overwrite, *files)
    if len(files) < 2:
        raise UserError("--average: name two hypernetworks or more, such as --average one.pt:0.6 other.pt:0.4")
    try:
        result = hypernet.average([hypernet.load(file) for file in files], weights)
    except hypernet.NotAHypernetwork:
        raise
    except ValueError as error:
        raise UserError(f"--average: {error}") from None
    print(" + ".join(f"{weight / sum(weights):.3g} x {file}" for file, weight in zip(files, weights)))
    result.stored_dtype = torch.float32
    write(result, target, args.half)


def split_weight(text: str) -> tuple[str, float]:
    """("one.pt", 0.6) of "one.pt:0.6"; the weight is 1 if there is none."""
    file, _, weight = text.rpartition(":")
    try:
        return (file, float(weight)) if file else (text, 1.0)
    except ValueError:
        if Path(file).exists():
            raise UserError(f"--average {text}: {weight} is no number; write {file}:0.6") from None
        return text, 1.0  # the colon was part of the path


if __name__ == "__main__":
    run_script(main)
