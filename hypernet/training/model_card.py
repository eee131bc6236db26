"""The model card of a finished run, and its push to the Hub."""

import dataclasses
import shlex
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.formats.compatibility import comfyui_reads
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.stable_diffusion.loras import split_lora, write_lora_tag
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError

COMFYUI = {
    True: "In ComfyUI: the same file into `models/hypernetworks/`, and the node HypernetworkLoader.",
    False: "(ComfyUI would draw it wrongly: it does not know this activation, dropout or LayerNorm.)",
}
CARD = """---
tags: [stable-diffusion, hypernetwork, text-to-image]
{base_model}library_name: diffusers
---
# {name}

A hypernetwork for {kind}, trained for {step} steps on {base}: layer structure {layer_structure}, activation
{activation}, context widths {widths}.

{preview}
## Use it

In the AUTOMATIC1111 WebUI: put [`{name}.pt`]({name}.pt) into `models/hypernetworks/` and write `<hypernet:{name}:1>` in
the prompt. {comfyui}{remarks} In diffusers:

```python
{recipe}
```

## How it was trained

| option | value |
| --- | --- |
{options}

![loss](loss.png)
"""


def write_card(output: RunFolder, config: TrainingConfig, base_model: BaseModel, hypernetwork, source: str):
    """README.md: what it is, what it looks like, how to load it from `source`, how it was trained."""
    trained = hypernetwork.config
    base = config.pretrained_model_name_or_path
    is_hub_id = not Path(base).exists()
    private = {"output_dir", "overwrite", "cache_dir", "train_data_dir", "push_to_hub", "hub_model_id"}
    private |= {"validation_data_dir", "init_from"}
    private |= set() if is_hub_id else {"pretrained_model_name_or_path"}
    private |= {"model_config", "original_config", "pretrained_vae_model_name_or_path", "lora"}  # the recipe has them
    prompt = (config.validation_prompt or ["a painting"])[0].replace('"', "'")

    def shown(path):  # others learn no more of this machine than names
        return Path(path).name if config.push_to_hub and Path(path).exists() else path

    default = {field.name: field.default for field in dataclasses.fields(config)}
    options = {key: value for key, value in vars(config).items() if key not in private and value != default[key]}
    card = CARD.format(
        base_model=f"base_model: {base}\n" if is_hub_id else "",
        name=config.name,
        step=trained.step,
        base=shown(base),
        kind="SDXL" if base_model.is_xl else "Stable Diffusion",
        recipe=diffusers_recipe(base_model, source, prompt, shown),
        remarks=f" {said}" if (said := remarks(base_model, source, prompt)) else "",
        layer_structure=",".join(f"{multiple:g}" for multiple in trained.layer_structure),
        activation=trained.activation,
        widths=", ".join(map(str, trained.widths)),
        comfyui=COMFYUI[comfyui_reads(hypernetwork)],
        preview="![without and with it](previews/before_after.png)\n" if output.before_after.exists() else "",
        options="\n".join(f"| {key} | {str(value).replace('|', ' ')} |" for key, value in options.items()),
    )
    output.card.write_text(card, encoding="utf-8")


def check_hub_login(config: TrainingConfig):
    """Raises: UserError if the run is to be pushed, and there is no login to push with or no valid name."""
    if config.push_to_hub:
        from huggingface_hub import get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(config.hub_model_id or config.name)
        except HFValidationError as error:
            raise UserError(f"--hub_model_id {config.hub_model_id or config.name}: {error}") from None
        if get_token() is None:
            raise UserError("--push_to_hub: you are not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")


def push_to_hub(output: RunFolder, config: TrainingConfig, base_model: BaseModel, hypernetwork) -> str:
    """Write the card for the Hub and upload what is to be used (not the training states and logs).

    Returns the line to tell: the page's address, or why it failed; a run that is done is not lost to a bad connection.
    """
    from huggingface_hub import HfApi

    api, name = HfApi(), config.hub_model_id or config.name
    write_card(output, config, base_model, hypernetwork, name)  # so that there is one even if the Hub cannot be reached
    ignored = ["checkpoints/*", "logs/*", "wandb/*", "run.json"]
    try:
        repo_id = api.create_repo(name, exist_ok=True).repo_id
        write_card(output, config, base_model, hypernetwork, repo_id)
        commit = "Upload hypernetwork"
        api.upload_folder(repo_id=repo_id, folder_path=output.root, ignore_patterns=ignored, commit_message=commit)
    except Exception as error:  # whatever it is: the run is done, and only the upload is not
        reason = " ".join(str(error).split())
        return f"The upload to the Hub failed ({reason}); everything is in {output.root}, run the same command again."
    return f"  on the Hub      https://huggingface.co/{repo_id}"


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
