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
import math
from pathlib import Path

from hypernet.script import ScriptParser, run_script

import torch

import hypernet
from hypernet.errors import UserError
from hypernet.examination import describe, examine, overview
from hypernet.files import find_weights
from hypernet.mend import mend
from hypernet.network import without_dropout
from hypernet.prompt_tags import trained_config
from hypernet.webui_optim import find_optimizer, optim_path, save_optim

MOST_DETAILS = 3  # files of which --inspect tells everything; of more it gives an overview
MODES = {  # what can be asked for, and the options that go with it
    "inspect": {"json"},
    "merge": {"half", "overwrite"},
    "to_lora": {"half", "model", "prompts", "steps", "strength", "overwrite"},
    "fix": set(),
    None: {"with_optimizer", "half", "for_inference", "rename", "overwrite"},  # converting
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
    add("--overwrite", action="store_true", help="TARGET may exist, and is replaced")
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
        surplus = f"{args.target} is one too many" if args.target else "the file to write is missing"
        raise UserError(f"--merge: {surplus}; as in: convert_to_webui.py both.pt --merge one.pt:0.6 other.pt:0.4")
    if mode != "inspect" and args.source is None:
        raise UserError("the SOURCE is missing: a trained folder or a file; --help shows commands")
    if mode == "inspect" and args.source is not None:
        raise UserError(f"{args.source}: name all files behind --inspect")
    if mode == "to_lora" and (args.to_lora < 1 or args.steps is not None and args.steps < 1):
        raise UserError("--to_lora and --steps must be 1 or more")
    if args.strength is not None and not math.isfinite(args.strength):
        raise UserError(f"--strength {args.strength}: it must be a number")


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
    state, _ = find_optimizer(source, hypernetwork) if args.with_optimizer else (None, None)
    if args.with_optimizer:
        if target is not None and target.suffix.lower() != ".pt":
            raise UserError(f"--with_optimizer: the WebUI's optimizer lies beside a .pt, {target} is none")
        if args.for_inference or args.half:
            raise UserError(
                "--with_optimizer: training goes on with dropout and in float32; leave out the other option"
            )
        if state is None:
            raise UserError(
                f"--with_optimizer: {source} has no optimizer; name a training state such as checkpoints/step-000500"
            )
    if state is not None and target is not None and optim_path(target).exists() and not args.overwrite:
        raise UserError(f"{optim_path(target)}: there is one already; name another TARGET, or add --overwrite")
    if args.for_inference:
        hypernetwork = without_dropout(hypernetwork)
    if target is None:
        name = hypernetwork.config.name  # the file's word, which may be a path
        target = source / f"{name if is_file_name(name) else source.resolve().name}.pt"
        check_target(target, args.overwrite or (source / "run.json").exists())
    write(hypernetwork, target, args.half)
    if state is not None:
        save_optim(state, target)
        print(f"{optim_path(target)}: AdamW's state, for the WebUI to go on from")


def choose_target(args, source: Path) -> Path | None:
    """Where to write; None for NAME.pt in the trained folder `source`."""
    target = args.target
    if args.rename is not None:
        name = args.rename.removesuffix(source.suffix)
        if target is not None:
            raise UserError(f"--rename {name}: the copy lies beside the file; leave {target} out")
        if source.is_dir():
            raise UserError(f"--rename {name}: it is for files; name the TARGET for what is in {source}")
        if not is_file_name(name):
            raise UserError(f'--rename {args.rename!r}: it becomes a file name, so none of < > : " / \\ | ? *')
        target = source.with_name(name + source.suffix)
    if target is None and not source.is_dir():
        hypernet.load(args.source)  # which tells if it is none
        raise UserError(f"{source}: name what to write, too: convert_to_webui.py {source} TARGET")
    check_target(target, args.overwrite, source)
    return target


def is_file_name(name: str) -> bool:
    """Whether a file can be called so everywhere."""
    return (
        name.isprintable() and not set(name) & set('<>:"/\\|?*') and bool(name.strip(". ")) and len(name.encode()) < 200
    )


def check_target(target: Path | None, overwrite: bool, *sources):
    """Raises: UserError for a place that cannot be written to, or would do away with something else."""
    if target is None:
        return
    if len(target.name.encode()) > 200:
        raise UserError(f"{target.name[:40]}...: the name is too long")
    file = target.suffix.lower() in (".pt", ".safetensors")
    if any(Path(source).resolve() == target.resolve() for source in sources):
        raise UserError(f"{target}: it is the source itself; name another one")
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no folder '{target.parent}'")
    if target.suffix.lower() in (".ckpt", ".bin", ".pth"):
        raise UserError(
            f"{target}: write NAME.pt (for the WebUI), NAME.safetensors, or a folder's name (for diffusers)"
        )
    if file and target.is_dir() or not file and target.is_file():
        raise UserError(f"{target}: it is a {'folder' if file else 'file'}; name another place")
    if target.is_dir() and any(target.iterdir()):
        if trained_config(target) is None or (target / "run.json").exists():
            raise UserError(
                f"{target}: it holds other things; name a new folder, or a file, such as {target / 'NAME.pt'}"
            )
    if not overwrite and (target.is_file() or trained_config(target) is not None):
        raise UserError(f"{target}: there is one already; name another one, or add --overwrite")
    if target.stem == "None":
        raise UserError(f"{target}: the WebUI takes None for no hypernetwork; name it otherwise")


def write(hypernetwork, target: Path, half: bool):
    """Write and tell; in the precision that it was read in, unless `half`."""
    file = target.suffix.lower() in (".pt", ".safetensors")
    hypernetwork.register_to_config(name=target.stem if file else target.resolve().name)
    dtype = torch.float16 if half or hypernetwork.stored_dtype is torch.float16 else torch.float32
    try:
        hypernet.save(hypernetwork, target, dtype)
    except OSError as error:
        raise UserError(f"{target}: it cannot be written ({error.strerror or error})") from None
    config, size = hypernetwork.config, find_weights(target).stat().st_size
    print(f"{target}: {config.name}, step {config.step}, {size / 2**20:.1f} MiB")


def inspect(args):
    """Everything about each file; a file that is none is said in its place, and makes the command fail at its end."""
    reports = []
    for file in args.inspect:
        try:
            reports.append(examine(file))
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
    mended = mend(source)
    print(f"{source}: " + ("mended: " + "; ".join(mended) if mended else "nothing to mend"))


def merge(args):
    files, weights = zip(*map(split_weight, args.merge))
    target = Path(args.source)
    check_target(target, args.overwrite, *files)
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
        return (file, float(weight)) if file else (text, 1.0)
    except ValueError:
        if Path(file).exists():
            raise UserError(f"--merge {text}: {weight} is no number; write {file}:0.6") from None
        return text, 1.0  # the colon was part of the path


def write_lora(args):
    from hypernet.contexts import gather_contexts, normal_contexts  # pipelines take their time to be imported
    from hypernet.drawing import ModelSource, load_pipeline
    from hypernet.drawing_options import training_options
    from hypernet.network import is_linear
    from hypernet.to_lora import peft_path, save_lora, to_lora

    target, strength = args.target, 1.0 if args.strength is None else args.strength
    if target is None or target.suffix.lower() != ".safetensors":
        raise UserError("--to_lora: name a TARGET that ends in .safetensors")
    for file in (target, peft_path(target)):
        check_target(file, args.overwrite, args.source)
        check_lora(file)
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
        print(f"Drawing {len(prompts)} prompt{'s' * (len(prompts) > 1)} to see what the hypernetwork gets")
    try:
        steps = {"num_inference_steps": args.steps or 20}
        drawn = gather_contexts(pipe, hypernetwork, prompts, strength, **steps) if prompts else None
        contexts = drawn or normal_contexts(hypernetwork)
        lora = to_lora(pipe.unet, hypernetwork, args.to_lora, contexts, strength)
    except ValueError as error:
        raise UserError(f"{args.source}: {error}") from None
    if not lora.factors:
        raise UserError(f"{args.source}: no attention layer of {model} has a width of it")
    save_lora(lora, target, torch.float16 if args.half else torch.float32)
    tell_lora(lora, target, args.to_lora, is_linear(hypernetwork))


def check_lora(path: Path):
    """Raises: UserError if a LoRA written there would do away with something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError):
        names = []
    if path.exists() and not any(".lora_" in name for name in names):
        raise UserError(f"{path}: it is there already, and no LoRA; name another file")


def tell_lora(lora, target, rank, linear):
    from hypernet.to_lora import peft_path

    print("share of the hypernetwork's effect that is kept" + ("" if linear else " (the linear map's miss included)"))
    width = min(min(down.shape[1], len(up)) for down, up, _ in lora.factors.values())
    if any(len(down) < rank for down, _, _ in lora.factors.values()):
        print(f"  (rank {rank} is more than the narrowest layers have: {width} is all of theirs)")
    for width, kept in sorted(lora.kept.items()):
        missed = "" if linear else f"   the nearest linear map misses {lora.fitted[width]:.1%}"
        print(f"  width {width:5}   kohya {kept['kohya']:7.2%}   PEFT {kept['peft']:7.2%}{missed}")
    for file, use in ((target, "WebUI, ComfyUI, diffusers"), (peft_path(target), "diffusers, with the exact biases")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, for {use}")


if __name__ == "__main__":
    run_script(main)
