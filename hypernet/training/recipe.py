"""The lines of Python that draw with a hypernetwork in diffusers as it was trained, and what the WebUI has to be set to."""

import shlex
from pathlib import Path

from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.loras import split_lora
from hypernet.generation.prompt_tags import write_lora_tag


def diffusers_recipe(base: BaseModel, source: str, prompt: str, shown_path=str) -> str:
    """A program that loads the model with all that lay under the hypernetwork `source`, and draws a picture.

    `shown_path` makes of a local path what is to be read in its place.
    """
    model, is_here = base.source, Path(base.source.path).exists()
    name = "StableDiffusionXLPipeline" if base.is_xl else "StableDiffusionPipeline"
    dtype, to_gpu = ("float32", "") if is_here else ("float16", '.to("cuda")')
    imports, lines, given = [name], [], [f"dtype=torch.{dtype}"]

    def show(path):
        return f'"{shown_path(path) if Path(path).exists() else path}"'

    vae = model.pretrained_vae_model_name_or_path
    if vae:
        imports.append("AutoencoderKL")
        load = "from_single_file" if Path(vae).is_file() else "from_pretrained"
        lines.append(f"vae = AutoencoderKL.{load}({show(vae)}, dtype=torch.{dtype})")
        given.append("vae=vae")
    for key in ("revision", "variant"):
        given += [f'{key}="{getattr(model, key)}"'] if getattr(model, key) else []
    given += [f"config={show(model.model_config)}"] if model.model_config else []
    given += [f"original_config={show(model.original_config)}"] if model.original_config else []
    load = "from_single_file" if base.single else "from_pretrained"
    lines.append(f"pipe = {name}.{load}({show(model.path)}, {', '.join(given)}){to_gpu}")
    overruled = model.rescale_betas_zero_snr is not None or model.prediction_type
    if overruled or base.zero_snr or base.single and base.single.prediction_type:
        imports.append("DDIMScheduler")
        changes = f'prediction_type="{base.prediction_type}", clip_sample=False'
        trailing = ', timestep_spacing="trailing"' if base.zero_snr else ""
        changes += f", rescale_betas_zero_snr={base.zero_snr}{trailing}"
        lines.append(f"pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, {changes})")
    for number, (path, _) in enumerate(map(split_lora, model.lora)):
        lines.append(f'pipe.load_lora_weights({show(path)}, adapter_name="lora_{number}")')
    if model.lora:
        scales = [scale for _, scale in map(split_lora, model.lora)]
        lines.append(f"pipe.set_adapters({[f'lora_{i}' for i in range(len(scales))]}, {scales})".replace("'", '"'))
    lines.append(f'hypernet.attach(pipe.unet, hypernet.load("{source}"), strength=1.0)')
    lines.append(f'pipe("{prompt}").images[0]')
    return "\n".join([f"import hypernet, torch\nfrom diffusers import {', '.join(sorted(imports))}\n", *lines])


def remarks(base: BaseModel, source: str, prompt: str) -> str:
    """What else belongs to the pictures: how prompts are read, and what that means in the WebUI. Empty if nothing."""
    model, said = base.source, []
    if model.lora:
        tags = " ".join(write_lora_tag(*split_lora(lora)) for lora in model.lora)
        said.append(f"It was trained over LoRAs, which belong to it; in the WebUI write `{tags}` beside it.")
    if model.clip_skip:
        said.append(f"It was trained with clip skip {model.clip_skip}, which the WebUI has to be set to.")
    if model.prompt_emphasis:
        said.append("Its captions were read with emphasis, as the WebUI reads `(word:1.3)`; diffusers does not.")
    if model.clip_skip or model.prompt_emphasis:
        command = shlex.join(["--hypernetwork", source, "--prompt", prompt])
        said.append(f"`python examples/generate.py {command}` of the trainer draws so.")
    return " ".join(said)
