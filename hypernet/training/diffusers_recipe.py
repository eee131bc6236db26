"""Write the code that uses a trained hypernetwork in diffusers, on the base model it was trained on."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path

from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.loras import split_lora, write_lora_tag


def diffusers_recipe(base: BaseModel, source: str, prompt: str, shown_path: Callable[[str], str] = str) -> str:
    """Return a program that loads the base model and the hypernetwork, and generates an image.

    Args:
        source: path or Hub id of the hypernetwork, as for `hypernet.load`.
        shown_path: maps a local path to the one to show instead.
    """
    model, is_local = base.source, Path(base.source.path).exists()
    dtype, to_gpu = ("float32", "") if is_local else ("float16", '.to("cuda")')

    def shown(name: str) -> str:
        return _literal(shown_path(name) if Path(name).exists() else name)

    pipeline_class = "StableDiffusionXLPipeline" if base.is_xl else "StableDiffusionPipeline"
    imports, lines, arguments = [pipeline_class], [], [f"dtype=torch.{dtype}"]
    vae = model.pretrained_vae_model_name_or_path
    if vae:
        imports.append("AutoencoderKL")
        load = "from_single_file" if Path(vae).is_file() else "from_pretrained"
        lines.append(f"vae = AutoencoderKL.{load}({shown(vae)}, dtype=torch.{dtype})")
        arguments.append("vae=vae")
    arguments += [f"{key}={_literal(value)}" for key in ("revision", "variant") if (value := getattr(model, key))]
    arguments += [f"config={shown(model.model_config)}"] if model.model_config else []
    arguments += [f"original_config={shown(model.original_config)}"] if model.original_config else []
    load = "from_single_file" if base.single_file else "from_pretrained"
    lines.append(f"pipe = {pipeline_class}.{load}({shown(model.path)}, {', '.join(arguments)}){to_gpu}")
    if _needs_scheduler(base):
        imports.append("DDIMScheduler")
        lines.append(_scheduler_line(base))
    loras = [split_lora(lora) for lora in model.lora]
    for number, (lora, _) in enumerate(loras):
        lines.append(f'pipe.load_lora_weights({shown(lora)}, adapter_name="lora_{number}")')
    if loras:
        names = json.dumps([f"lora_{number}" for number in range(len(loras))])
        lines.append(f"pipe.set_adapters({names}, {[scale for _, scale in loras]})")
    lines.append(f"hypernet.attach(pipe.unet, hypernet.load({_literal(source)}), strength=1.0)")
    lines.append(f"pipe({_literal(prompt)}).images[0]")
    return "\n".join([f"import hypernet, torch\nfrom diffusers import {', '.join(sorted(imports))}\n", *lines])


def _needs_scheduler(base: BaseModel) -> bool:
    """Whether the scheduler that diffusers would choose does not fit the model."""
    overridden = base.source.rescale_betas_zero_snr is not None or base.source.prediction_type
    return bool(overridden or base.zero_terminal_snr or base.single_file and base.single_file.prediction_type)


def _scheduler_line(base: BaseModel) -> str:
    changes = f"prediction_type={_literal(base.prediction_type)}, clip_sample=False"
    changes += f", rescale_betas_zero_snr={base.zero_terminal_snr}"
    changes += ', timestep_spacing="trailing"' if base.zero_terminal_snr else ""
    return f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {changes})"


def _literal(text: str) -> str:
    """Return the text as a Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def usage_notes(base: BaseModel, source: str, prompt: str) -> str:
    """Return notes on LoRAs that were fused, and on prompts not read in the default way; may be empty."""
    model, notes = base.source, []
    if model.lora:
        tags = " ".join(write_lora_tag(*split_lora(lora)) for lora in model.lora)
        notes.append(f"It was trained on top of LoRAs and needs them: in the WebUI, write `{tags}` beside its tag.")
    if model.clip_skip:
        notes.append(f"It was trained with clip skip {model.clip_skip}: set the WebUI to the same.")
    if model.prompt_emphasis:
        notes.append("Its captions were read with emphasis, as the WebUI reads `(word:1.3)`; diffusers does not.")
    if model.clip_skip or model.prompt_emphasis:
        command = shlex.join(["--hypernetwork", source, "--prompt", prompt])
        notes.append(f"The trainer's `python examples/generate.py {command}` reads prompts the same way.")
    return " ".join(notes)
