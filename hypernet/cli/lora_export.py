"""From a hypernetwork's file to the files of a LoRA: draw to see what it gets, fit, write, and tell what is kept.

The arithmetic is in `to_lora`; here is what a user asks for and is told (`convert_to_webui.py --to_lora`).
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from hypernet.cli.conversion_targets import check_target
from hypernet.cli.generation_options import find_model
from hypernet.formats.load_save import load
from hypernet.formats.lora import peft_path, save_lora
from hypernet.formats.trained_folder import training_options
from hypernet.generation.generator import load_for_generation
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.lora_approximation import Lora, gather_contexts, normal_contexts, to_lora
from hypernet.utils.errors import UserError


def export_lora(args):
    """Write the LoRA that convert_to_webui.py's options ask for; what is not said is that of the training, if known.

    Raises:
        UserError: if it cannot be made, or would do away with something else.
    """
    target, strength = args.target, 1.0 if args.strength is None else args.strength
    if target is None or target.suffix.lower() != ".safetensors":
        raise UserError("--to_lora: name a TARGET that ends in .safetensors")
    for file in (target, peft_path(target)):
        check_target(file, args.overwrite, args.source)
        check_lora(file)
    trained = training_options(args.source)
    prompts = args.prompts or trained.get("validation_prompt")
    hypernetwork = load(args.source)
    if not prompts and not is_linear(hypernetwork):
        raise UserError("--prompts is missing: what is not linear is fitted on what it gets while pictures are drawn")
    model = find_model(args, [trained], "the hypernetwork's file does not say where the model lies")
    pipe = load_for_generation(model).pipeline
    pipe.set_progress_bar_config(disable=True)
    try:
        contexts = find_contexts(pipe, hypernetwork, prompts, strength, args.steps or 20)
        lora = to_lora(pipe.unet, hypernetwork, args.to_lora, contexts, strength)
    except ValueError as error:
        raise UserError(f"{args.source}: {error}") from None
    if not lora.factors:
        raise UserError(f"{args.source}: no attention layer of {model.path} has a width of it")
    save_lora(lora, target, torch.float16 if args.half else torch.float32)
    report_lora(lora, target, args.to_lora, is_linear(hypernetwork))


def check_lora(path: Path):
    """Raises: UserError if a LoRA written there would do away with something else."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError):
        names = []
    if path.exists() and not any(".lora_" in name for name in names):
        raise UserError(f"{path}: it is there already, and no LoRA; name another file")


def find_contexts(
    pipe, hypernetwork: Hypernetwork, prompts: list[str] | None, strength: float, steps: int
) -> dict[int, torch.Tensor]:
    """Width -> (N, width): what the hypernetwork gets while the prompts are drawn; normal ones if there are none."""
    if not prompts:
        return normal_contexts(hypernetwork)
    print(f"Drawing {len(prompts)} prompt{'s' * (len(prompts) > 1)} to see what the hypernetwork gets")
    drawn = gather_contexts(pipe, hypernetwork, prompts, strength, num_inference_steps=steps)
    return drawn or normal_contexts(hypernetwork)


def report_lora(lora: Lora, target: Path, rank: int, linear: bool):
    """Print what share of the effect each form keeps, by width, and which file is for whom."""
    print("share of the hypernetwork's effect that is kept" + ("" if linear else " (the linear map's miss included)"))
    width = min(min(down.shape[1], len(up)) for down, up, _ in lora.factors.values())
    if any(len(down) < rank for down, _, _ in lora.factors.values()):
        print(f"  (rank {rank} is more than the narrowest layers have: {width} is all of theirs)")
    for width, kept in sorted(lora.kept.items()):
        missed = "" if linear else f"   the nearest linear map misses {lora.fitted[width]:.1%}"
        print(f"  width {width:5}   kohya {kept['kohya']:7.2%}   PEFT {kept['peft']:7.2%}{missed}")
    for file, use in ((target, "WebUI, ComfyUI, diffusers"), (peft_path(target), "diffusers, with the exact biases")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, for {use}")
