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
    python convert_to_webui.py both.pt --merge one.pt:0.6 other.pt:0.4
    python convert_to_webui.py my_style.pt lora.safetensors --to_lora 64 --model MODEL --prompts "a cat" "a house"

A .pt file's name is the name that prompts use: my_style.pt is `<hypernet:my_style:1>`.
"""

import json
from pathlib import Path

from hypernet.script import ScriptParser, run_script

import torch

import hypernet
from hypernet.errors import UserError
from hypernet.examination import describe, examine
from hypernet.files import WEIGHTS_NAME
from hypernet.mend import mend
from hypernet.network import without_dropout
from hypernet.webui_optim import find_optimizer, optim_path, save_optim

MODES = {  # what can be asked for, and the options that go with it
    "inspect": {"json"},
    "merge": {"half"},
    "to_lora": {"half", "model", "prompts", "steps", "strength"},
    "fix": set(),
    None: {"with_optimizer", "half", "for_inference", "rename"},  # converting
}


# fmt: off
def parse_arguments(arguments=None):
    parser = ScriptParser(__doc__)
    add = parser.add_argument
    add("source", nargs="?", help="a trained folder, a checkpoint, a .safetensors, a .pt, or a Hub id; with --merge the file to write")
    add("target", nargs="?", type=Path, help="what to write; default: NAME.pt in the trained folder")
    add("--with_optimizer", action="store_true", help="write TARGET.optim, too, to go on training in the WebUI")
    add("--half", action="store_true", help="weights in float16, half the size; default: as in SOURCE")
    add("--for_inference", action="store_true", help="without dropout, which ComfyUI leaves active")
    add("--rename", metavar="NAME", help="write a copy called NAME beside the file")
    add("--fix", action="store_true", help="write a .pt anew as every program expects it; the old one is kept as .bak")
    add("--inspect", nargs="+", metavar="FILE", help="tell what files are, their health, and who reads them")
    add("--json", action="store_true", help="with --inspect: as JSON")
    add("--merge", nargs="+", metavar="FILE:WEIGHT", help="weighted average of hypernetworks of one structure")
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
        raise UserError(f"--{option}: it has no effect " + (f"with --{mode}" if mode else "without --" + home(option)))
    if mode == "merge" and (args.source is None or args.target is not None):
        raise UserError(
            "--merge: name one file to write before it: convert_to_webui.py both.pt --merge one.pt:0.6 other.pt:0.4"
        )
    if mode != "inspect" and args.source is None:
        raise UserError("the SOURCE is missing: a trained folder or a file; --help shows commands")
    if mode == "inspect" and args.source is not None:
        raise UserError(f"{args.source}: name all files behind --inspect")
    if mode == "to_lora" and (args.to_lora < 1 or args.steps is not None and args.steps < 1):
        raise UserError("--to_lora and --steps must be 1 or more")


def home(option: str) -> str:
    """The mode that an option goes with."""
    return next(mode for mode, options in MODES.items() if option in options)


def main(arguments=None):
    args = parse_arguments(arguments)
    if args.inspect:
        inspect(args)
    elif args.merge:
        merge(args)
    elif args.to_lora is not None:
        write_lora(args)
    elif args.fix:
        fix(args)
    else:
        convert(args)


def convert(args):
    source = Path(args.source)
    target = choose_target(args, source)
    hypernetwork = hypernet.load(args.source)
    state = find_optimizer(source, hypernetwork) if args.with_optimizer else None
    if args.with_optimizer:
        if target is not None and target.suffix != ".pt":
            raise UserError(f"--with_optimizer: the WebUI's optimizer lies beside a .pt, {target} is none")
        if args.for_inference or args.half:
            raise UserError(
                "--with_optimizer: training goes on with dropout and in float32; leave out the other option"
            )
        if state is None:
            raise UserError(
                f"--with_optimizer: {source} has no optimizer; name a training state such as checkpoints/step-000500"
            )
    if args.for_inference:
        hypernetwork = without_dropout(hypernetwork)
    target = target or source / f"{hypernetwork.config.name}.pt"
    write(hypernetwork, target, args.half)
    if state is not None:
        save_optim(state, target)
        print(f"{optim_path(target)}: AdamW's state, for the WebUI to go on from")


def choose_target(args, source: Path) -> Path | None:
    """Where to write; None for NAME.pt in the trained folder `source`."""
    target = args.target
    if args.rename is not None:
        if target is not None or not source.is_file() or set(args.rename) & set('<>:"/\\|?*'):
            raise UserError(
                f'--rename {args.rename}: it needs a file, no TARGET, and a name without < > : " / \\ | ? *'
            )
        target = source.with_name(args.rename + source.suffix)
        if target.exists():
            raise UserError(f"--rename {args.rename}: there is a {target} already")
    if target is None and not source.is_dir():
        raise UserError(f"{source}: name the TARGET, too, what is to be written")
    check_target(target, source)
    return target


def check_target(target: Path | None, *sources):
    """Raises: UserError for a place that cannot be written to, or would do away with something else."""
    if target is None:
        return
    if any(Path(source).resolve() == target.resolve() for source in sources):
        raise UserError(f"{target}: it is the source itself; name another file")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder {target.parent}")
    if target.suffix in (".ckpt", ".bin", ".pth"):
        raise UserError(
            f"{target}: end it in .pt for the WebUI, in .safetensors or in nothing, for a folder, for diffusers"
        )
    if target.suffix in (".pt", ".safetensors") and target.is_dir() or (target / "run.json").exists():
        raise UserError(f"{target}: it is a {'run' if target.suffix == '' else 'folder'}; name another place")
    if target.stem == "None":
        raise UserError(f"{target}: the WebUI takes None for no hypernetwork; name it otherwise")


def write(hypernetwork, target: Path, half: bool):
    """Write and tell; in the precision that it was read in, unless `half`."""
    hypernetwork.register_to_config(name=target.stem)
    dtype = torch.float16 if half or hypernetwork.stored_dtype is torch.float16 else torch.float32
    try:
        hypernet.save(hypernetwork, target, dtype)
    except OSError as error:
        raise UserError(f"{target}: it cannot be written ({error.strerror or error})") from None
    file = target if target.is_file() else target / WEIGHTS_NAME
    print(f"{target}: {target.stem}, step {hypernetwork.config.step}, {file.stat().st_size / 2**20:.1f} MiB")


def inspect(args):
    """Everything about each file; a file that is none is said in its place, and makes the command fail at its end."""
    reports = []
    for file in args.inspect:
        try:
            reports.append(examine(file))
        except hypernet.NotAHypernetwork as error:
            reports.append({"file": file, "error": str(error)})
    if args.json:
        print(json.dumps(reports, indent=2))
    else:
        print("\n\n".join(report.get("error") or describe(report) for report in reports))
    refused = sum("error" in report for report in reports)
    if refused:
        raise UserError(f"{refused} of {len(reports)} cannot be read as a hypernetwork")


def fix(args):
    source = Path(args.source)
    if source.suffix != ".pt" or args.target is not None:
        raise UserError(f"--fix {source}: it mends one .pt in its place; converting to another TARGET mends, too")
    mended = mend(source)
    print(f"{source}: " + ("mended: " + "; ".join(mended) if mended else "nothing to mend"))


def merge(args):
    files, weights = zip(*map(split_weight, args.merge))
    target = Path(args.source)
    check_target(target, *files)
    if len(files) < 2:
        raise UserError("--merge: name two hypernetworks or more, such as --merge one.pt:0.6 other.pt:0.4")
    try:
        result = hypernet.average([hypernet.load(file) for file in files], weights)
    except hypernet.NotAHypernetwork:
        raise
    except ValueError as error:
        raise UserError(f"--merge: {error}") from None
    print(" + ".join(f"{weight / sum(weights):.3g} x {file}" for file, weight in zip(files, weights)))
    result.stored_dtype = torch.float32
    write(result, target, args.half)


def split_weight(text: str) -> tuple[str, float]:
    """("one.pt", 0.6) of "one.pt:0.6"; the weight is 1 if there is none."""
    file, _, weight = text.rpartition(":")
    try:
        return file or text, float(weight) if file else 1.0
    except ValueError:
        return text, 1.0  # the colon was part of the path


def write_lora(args):
    from hypernet.contexts import gather_contexts, normal_contexts  # pipelines take their time to be imported
    from hypernet.drawing import ModelSource, load_pipeline
    from hypernet.drawing_options import training_options
    from hypernet.linear import is_linear
    from hypernet.to_lora import save_lora, to_lora

    target, strength = args.target, 1.0 if args.strength is None else args.strength
    if target is None or target.suffix != ".safetensors":
        raise UserError("--to_lora: name a TARGET that ends in .safetensors")
    check_target(target, args.source)
    trained = training_options(args.source)
    prompts = args.prompts or trained.get("validation_prompt")
    hypernetwork = hypernet.load(args.source)
    if not prompts and not is_linear(hypernetwork):
        raise UserError("--prompts is missing: what is not linear is fitted on what it gets while pictures are drawn")
    model = args.model or trained.get("pretrained_model_name_or_path")
    if not model:
        raise UserError("--model is missing: the hypernetwork's file does not say where the model lies")
    given = {} if args.model else {key: trained.get(key) for key in ("revision", "variant")}
    pipe = load_pipeline(ModelSource(model, **given))
    pipe.set_progress_bar_config(disable=True)
    if prompts:
        print(f"Drawing {len(prompts)} prompts to see what the hypernetwork gets")
        contexts = gather_contexts(pipe, hypernetwork, prompts, strength, num_inference_steps=args.steps or 20)
    else:
        contexts = normal_contexts(hypernetwork)
    lora = to_lora(pipe.unet, hypernetwork, args.to_lora, contexts, strength)
    if not lora.factors:
        raise UserError(f"{args.source}: no attention layer of {model} has a width of it")
    save_lora(lora, target, torch.float16 if args.half else torch.float32)
    tell_lora(lora, target, is_linear(hypernetwork))


def tell_lora(lora, target, linear):
    from hypernet.to_lora import peft_path

    print("share of the hypernetwork's effect that is kept" + ("" if linear else " (the linear map's miss included)"))
    for width, kept in sorted(lora.kept.items()):
        missed = "" if linear else f"   the nearest linear map misses {lora.fitted[width]:.1%}"
        print(f"  width {width:5}   kohya {kept['kohya']:7.2%}   PEFT {kept['peft']:7.2%}{missed}")
    for file, use in ((target, "WebUI, ComfyUI, diffusers"), (peft_path(target), "diffusers, with the exact biases")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, for {use}")


if __name__ == "__main__":
    run_script(main)
