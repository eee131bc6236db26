"""Find our option for another trainer's. Imports no torch.

The tables of docs/from_webui.md map the options of the WebUI, kohya's scripts, OneTrainer and diffusers' scripts to
ours. They are read only for an unknown option.
"""

import dataclasses
import functools
import re
from pathlib import Path

from hypernet.utils.reading import read_text

PAGE = Path(__file__).parents[2] / "examples" / "docs" / "from_webui.md"
# Our option -> short forms, and names in other scripts, that the page leaves out
SHORT_FORMS = {
    "pretrained_model_name_or_path": "base_model ckpt checkpoint sd_model pretrained_model",
    "pretrained_vae_model_name_or_path": "vae_path",
    "train_data_dir": "data dataset images",
    "output_dir": "output out",
    "prediction_type": "v_prediction",
    "resolution": "size max_resolution",
    "aspect_buckets": "enable_buckets buckets bucket",
    "random_flip": "flip flip_augmentation",
    "shuffle_tags": "shuffle_captions shuffle",
    "name": "trigger trigger_word",
    "init_from": "continue_from resume_from",
    "widths": "sizes",
    "layer_structure": "dim structure",
    "activation": "activation_function",
    "weight_init": "init initialization weight_init_method",
    "layer_norm": "use_layer_norm",
    "dropout_structure": "dropout_rate",
    "learning_rate": "lr rate hypernetwork_learn_rate hypernet_learn_rate",
    "lr_scheduler": "scheduler",
    "lr_warmup_steps": "warmup warmup_steps lr_warmup",
    "max_train_steps": "train_steps num_train_steps num_steps iterations total_steps",
    "num_train_epochs": "epoch max_epochs n_epochs num_epochs",
    "train_batch_size": "batch train_batch bs",
    "gradient_accumulation_steps": "gradient_accumulation grad_accum accumulation_steps",
    "optimizer": "optim",
    "max_grad_norm": "clip_grad",
    "snr_gamma": "min_snr",
    "mixed_precision": "fp16 bf16 precision dtype",
    "gradient_checkpointing": "grad_checkpointing",
    "validation_split": "val_split",
    "validation_data_dir": "val_data_dir validation_dir validation_images",
    "validation_loss_steps": "validate_every eval_steps eval_interval",
    "checkpointing_steps": "save_steps save_interval checkpoint_every",
    "checkpoints_total_limit": "save_total_limit",
    "resume_from_checkpoint": "resume_from_step",
    "validation_prompt": "prompt prompts sample_prompt",
    "validation_negative_prompt": "negative_prompt",
    "validation_sampler": "sampler",
    "validation_steps": "sample_every sample_interval preview_every",
    "num_validation_images": "num_samples num_images",
    "validation_guidance_scale": "guidance_scale guidance cfg",
    "validation_inference_steps": "sample_steps",
    "logging_steps": "log_every log_every_n_steps log_interval",
    "report_to": "wandb use_wandb",
    "tracker_project_name": "project wandb_project",
    "run_name": "run",
    "hub_model_id": "hub_repo repo_id",
}


@dataclasses.dataclass(frozen=True)
class Alias:
    """A row of a table: options of another trainer, and ours for them."""

    theirs: tuple[str, ...]  # names in its code, and labels in its interface
    ours: tuple[str, ...]  # options, such as "--size 512" or "prepare.py --flip"; empty if there is none
    difference: str  # what is different, or why there is none; "the same" if nothing is


def read_tables(page: str) -> dict[str, list[Alias]]:
    """Return the tables of docs/from_webui.md by heading."""
    tables: dict[str, list[Alias]] = {}
    for line in page.splitlines():
        if line.startswith("## "):
            rows = tables.setdefault(line[3:], [])
        elif line.startswith("| ") and not line.startswith(("| there |", "| --- |")):
            theirs, ours, difference = line.strip("| ").split(" | ")
            names = tuple(name.strip("`") for name in theirs.split("; "))
            rows.append(Alias(names, tuple(re.findall(r"`([^`]+)`", ours)), difference.replace("`", "")))
    return {heading: rows for heading, rows in tables.items() if rows}


def find_aliases(name: str) -> list[Alias]:
    """Return the rows for another trainer's option, by its name or its label."""
    known = [alias for alias in _read_page(PAGE) if _plain(name) in map(_plain, alias.theirs)]
    short = [Alias((name,), (f"--{ours}",), "the same") for ours, names in SHORT_FORMS.items() if name in names.split()]
    return known or short


def other_names(name: str) -> list[str]:
    """Return other names for an option of train_hypernetwork.py, some of them from this project's other scripts."""
    rows = [alias.ours for alias in _read_page(PAGE) if f"--{name}" in alias.ours]
    return [option.rpartition("--")[2].split()[0] for ours in rows for option in ours] + SHORT_FORMS.get(
        name, ""
    ).split()


@functools.cache
def _read_page(path: Path) -> list[Alias]:
    """Return all rows of the page's tables; none if the package is used without the repository."""
    try:
        return [alias for rows in read_tables(read_text(path)).values() for alias in rows]
    except OSError:
        return []


def _plain(name: str) -> str:
    """Return a name or label in lower case, with an underscore for whatever is not a letter or digit."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")
