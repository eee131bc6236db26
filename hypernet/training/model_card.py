"""The model card of a finished run, and its push to the Hub."""

import dataclasses
from pathlib import Path

from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.config import TrainingConfig
from hypernet.utils.errors import UserError
from hypernet.training.run_folder import OutputFolder
from hypernet.formats.compatibility import comfyui_reads
from hypernet.training.recipe import diffusers_recipe, remarks

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


def write_card(output: OutputFolder, config: TrainingConfig, base_model: BaseModel, hypernetwork, source: str):
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


def push_to_hub(output: OutputFolder, config: TrainingConfig, base_model: BaseModel, hypernetwork) -> str:
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
