"""Write the model card of a finished run, and push it to the Hub with the hypernetwork."""

import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hypernet.config import TrainingConfig
from hypernet.formats.compatibility import comfyui_reads
from hypernet.formats.webui import EXTENSION
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.stable_diffusion.base_model import BaseModel
from hypernet.training.diffusers_recipe import diffusers_recipe, usage_notes
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError

# Options left out of the card: private ones, and those the recipe shows
UNLISTED = {"output_dir", "overwrite", "cache_dir", "train_data_dir", "validation_data_dir", "init_from"}
UNLISTED |= {"push_to_hub", "hub_model_id", "validation_prompts_file", "prior_prompts"}
UNLISTED |= {"model_config", "original_config", "pretrained_vae_model_name_or_path", "lora"}
NOT_PUSHED = ["checkpoints/*", "logs/*", "wandb/*", "run.json", "run.html"]
COMFYUI = {
    True: "In ComfyUI: put the same file into `models/hypernetworks/` and use the node HypernetworkLoader.",
    False: "ComfyUI applies it incorrectly: it does not support this activation, dropout, LayerNorm or skip connection.",
}
CARD = """---
{{ card_data }}
---
# {{ name }}

A hypernetwork for {{ kind }}, trained for {{ step }} steps on {{ base }}: layer structure {{ layer_structure }},
activation {{ activation }}, context widths {{ widths }}.

{% if has_preview %}![without and with it](previews/before_after.png)

{% endif %}## Use it

In the AUTOMATIC1111 WebUI{{ extension }}: put [`{{ name }}.pt`]({{ link }}) into `models/hypernetworks/` and write
`<hypernet:{{ name }}:1>` in the prompt. {{ comfyui }}
{% if notes %}
{{ notes }}
{% endif %}
In diffusers, with the `hypernet` package (from the trainer's repository: `pip install .` in a checkout):

```python
{{ recipe }}
```

## How it was trained

| option | value |
| --- | --- |
{% for key, value in options.items() %}| {{ key }} | {{ value }} |
{% endfor %}
{% if guarded %}The divergence guard has intervened: {{ guarded }}.

{% endif %}{% if scores %}Measured at its end: {{ scores }}. (Prompt fidelity: 1 if the images show their prompts as well as without the
hypernetwork, 0 if nothing is left of them. Style distance: 0 if they are like the training images, 1 if they are like
the base model's.)

{% endif %}![loss](loss.png)

"""  # Jinja drops the last newline


def write_card(
    folder: RunFolder,
    config: TrainingConfig,
    base: BaseModel,
    hypernetwork: Hypernetwork,
    source: str,
    prompt: str,
    scores: Mapping[str, float],
    guarded: str,
) -> None:
    """Write README.md: what the hypernetwork is, what it does, how to load it from `source`, how it was trained.

    Args:
        prompt: an example prompt to generate with.
        scores: see `PreviewScores`.
        guarded: see `Outcome`.
    """
    trained, model, name = hypernetwork.config, base.source.path, str(config.name)
    is_hub_id = not Path(model).exists()

    def shown_path(path: str) -> str:  # what is pushed must not reveal the folders of this machine
        return Path(path).name if config.push_to_hub and Path(path).exists() else path

    card = ModelCard.from_template(
        ModelCardData(
            base_model=model if is_hub_id else None,
            library_name="diffusers",
            tags=["stable-diffusion", "hypernetwork", "text-to-image"],
        ),
        template_str=CARD,
        name=name,
        link=urllib.parse.quote(f"{name}.pt"),
        kind="SDXL" if base.is_xl else "Stable Diffusion",
        step=trained.step,
        base=shown_path(model),
        layer_structure=",".join(f"{multiple:g}" for multiple in trained.layer_structure),
        activation=trained.activation,
        widths=", ".join(map(str, trained.widths)),
        has_preview=folder.before_after.exists(),
        extension="" if trained.skip_connection is None else f" with {EXTENSION}",
        comfyui=COMFYUI[comfyui_reads(hypernetwork)],
        notes=usage_notes(base, source, prompt),
        recipe=diffusers_recipe(base, source, prompt, shown_path),
        options=_listed_options(config, is_hub_id),
        guarded=guarded,
        scores=", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in scores.items() if name != "score"),
    )
    card.save(folder.card)


def _listed_options(config: TrainingConfig, is_hub_id: bool) -> dict[str, str]:
    """Return the options that differ from their defaults and may be published, as cells of a Markdown table."""
    unlisted = UNLISTED if is_hub_id else UNLISTED | {"pretrained_model_name_or_path"}
    changed = config.changed(name for name in vars(config) if name not in unlisted)
    return {name: _table_cell(value) for name, value in changed.items()}


def _table_cell(value: Any) -> str:
    return " ".join(str(value).splitlines()).replace("|", "\\|")


def check_hub_login(config: TrainingConfig) -> None:
    """Check that the run can be pushed to the Hub, if --push_to_hub is given.

    Raises:
        UserError: if the repository name is not valid, or nobody is logged in.
    """
    if config.push_to_hub:
        name = str(config.hub_model_id or config.name)
        try:
            validate_repo_id(name)
        except HFValidationError as error:
            raise UserError(f"--hub_model_id {name}: {error}") from None
        if get_token() is None:
            raise UserError("--push_to_hub: you are not logged in to the Hub; run `hf auth login`, or set HF_TOKEN")


def push_to_hub(
    folder: RunFolder,
    config: TrainingConfig,
    base: BaseModel,
    hypernetwork: Hypernetwork,
    prompt: str,
    scores: Mapping[str, float],
    guarded: str,
) -> str:
    """Write the card and upload everything but checkpoints and logs.

    Returns:
        A line to print: the address of the page, or why the upload failed. A failure does not end the finished run.
    """
    api, name = HfApi(), str(config.hub_model_id or config.name)
    # remains if the Hub cannot be reached
    write_card(folder, config, base, hypernetwork, name, prompt, scores, guarded)
    try:
        repo_id = api.create_repo(name, exist_ok=True).repo_id
        write_card(folder, config, base, hypernetwork, repo_id, prompt, scores, guarded)
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder.root,
            ignore_patterns=NOT_PUSHED,
            commit_message="Upload hypernetwork",
        )
    except Exception as error:  # whatever went wrong, training has succeeded
        reason = " ".join(str(error).split())
        return f"The upload to the Hub failed ({reason}); everything is in {folder.root}, run the same command again."
    return f"  on the Hub      https://huggingface.co/{repo_id}"
