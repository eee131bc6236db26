"""Export a hypernetwork as a LoRA (`convert_to_webui.py --to_lora`): check, fit, write, and report what is kept.

The arithmetic is in `hypernet.modeling.lora_approximation`.
"""

from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from safetensors import SafetensorError, safe_open

from hypernet.cli.conversion_targets import check_target
from hypernet.cli.generation_options import find_model
from hypernet.cli.option_notes import unquoted_note
from hypernet.formats.load_save import load
from hypernet.formats.lora import peft_path, save_lora
from hypernet.formats.trained_folder import find_run_options, previewed_prompts
from hypernet.generation.generator import load_for_generation
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.lora_approximation import Lora, gather_contexts, normal_contexts, to_lora
from hypernet.utils.errors import UserError


def export_lora(
    source: str,
    target: Path | None,
    rank: int,
    *,
    model: str | None = None,
    prompts: list[str] | None = None,
    steps: int = 20,
    strength: float = 1.0,
    half: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a LoRA of the hypernetwork at `source`, and print how much of its perturbation it keeps.

    Args:
        target: .safetensors file in kohya's naming; PEFT's is written beside it.
        model: folder, file or Hub id of the base model. Default: that of the run.
        prompts: what to generate for realistic contexts. Default: the run's validation prompts.
        steps: sampling steps for these.
        strength: of the hypernetwork, equivalent to strength 1 of the LoRA.
        half: write float16.
        overwrite: replace existing LoRAs.

    Raises:
        UserError: if the LoRA cannot be made, or another file would be lost.
    """
    if target is None or target.suffix.lower() != ".safetensors":
        raise UserError("--to_lora: name a TARGET that ends in .safetensors")
    for file in (target, peft_path(target)):
        check_target(file, overwrite, source)
        check_is_lora(file)
    if note := unquoted_note("prompts", prompts or []):
        print(f"note: {note}")
    run = find_run_options(source)
    prompts = prompts or previewed_prompts(run)
    hypernetwork = load(source)
    linear = is_linear(hypernetwork)
    if not prompts and not linear:
        problem = (
            "a hypernetwork with activation or LayerNorm is approximated on the contexts it sees during generation"
        )
        raise UserError(f"--prompts is missing: {problem}")
    base = find_model([run], "the file does not record its base model", model=model)
    pipe = load_for_generation(base).pipeline
    pipe.set_progress_bar_config(disable=True)
    try:
        contexts = find_contexts(pipe, hypernetwork, prompts, strength, steps)
        lora = to_lora(pipe.unet, hypernetwork, rank, contexts, strength)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    if not lora.factors:
        raise UserError(f"{source}: {base.path} has no attention layer of the hypernetwork's widths")
    save_lora(lora, target, torch.float16 if half else torch.float32)
    print_report(lora, target, rank, linear)


def check_is_lora(path: Path) -> None:
    """Raise UserError if there is a file at `path` that is not a LoRA."""
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError):
        names = []
    if path.exists() and not any(".lora_" in name for name in names):
        raise UserError(f"{path}: it already exists and is not a LoRA; choose another name")


def find_contexts(
    pipe: DiffusionPipeline, hypernetwork: Hypernetwork, prompts: list[str] | None, strength: float, steps: int
) -> dict[int, torch.Tensor]:
    """Return width -> contexts (N, width) from generating the prompts; normally distributed ones without prompts."""
    if not prompts:
        return normal_contexts(hypernetwork)
    print(f"Generating {len(prompts)} prompt{'s' * (len(prompts) > 1)} to record the hypernetwork's contexts")
    recorded = gather_contexts(pipe, hypernetwork, prompts, strength, num_inference_steps=steps)
    return recorded or normal_contexts(hypernetwork)


def print_report(lora: Lora, target: Path, rank: int, linear: bool) -> None:
    """Print the share of the perturbation that each format keeps, by width, and what each file is for."""
    including = "" if linear else " (whatever no linear map can express counts as lost)"
    print(f"share of the hypernetwork's perturbation that is kept{including}")
    full_rank = min(min(down.shape[1], len(up)) for down, up, _ in lora.factors.values())
    if any(len(down) < rank for down, _, _ in lora.factors.values()):
        print(f"  (the narrowest layers have rank {full_rank}, less than {rank})")
    for width, kept in sorted(lora.kept.items()):
        missed = "" if linear else f"   best linear map misses {lora.fit_errors[width]:.1%}"
        print(f"  width {width:5}   kohya {kept['kohya']:7.2%}   PEFT {kept['peft']:7.2%}{missed}")
    for file, use in ((target, "WebUI, ComfyUI, diffusers"), (peft_path(target), "diffusers, with exact biases")):
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB, for {use}")
