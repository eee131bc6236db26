"""What makes a run the same, besides its options: what its images, captions, templates and base model are.

Where they lie does not matter: a project that was moved or renamed goes on. Every checkpoint holds what it was trained
with, and a resumed run is compared with that.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hypernet.config import INEXACT, TrainingConfig
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.prompts import read_templates
from hypernet.stable_diffusion.loras import find_lora, split_lora
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.stable_diffusion.model_hash import parts_hash, weights_hash
from hypernet.training.run_options import UNREPORTED, Options, changed_options
from hypernet.utils.hashing import file_sha256

PROGRESS = "progress.json"  # in a checkpoint: all that is neither weights nor optimizer state
Contents = dict[str, str]  # kind -> hash

# Kind of content -> the options that say where it is. Those of the base model come last: with another one, the run's
# losses could not be compared
PLACES: dict[str, tuple[str, ...]] = {
    "images": ("train_data_dir", "dataset_name"),
    "captions": (),
    "templates": ("template",),
    "validation images": ("validation_data_dir",),
    "UNet": ("pretrained_model_name_or_path", "revision", "variant"),
    "VAE": ("pretrained_vae_model_name_or_path",),
    "text encoder": ("model_config", "original_config"),
    "noise schedule": (),
    "LoRAs": ("lora",),
}
MODEL_PARTS = tuple(PLACES)[4:]


def data_contents(
    source: ImageSource,
    records: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    config: TrainingConfig,
) -> Contents:
    """Describe the images, whatever their names and order, their captions, and the templates.

    Args:
        records: all images of the source, those set aside for validation included.
        validation: the validation images.
    """
    templates = read_templates(config.template)
    uses_captions = any("[filewords]" in template for template in templates)
    captions = [(record.sha256, *source.captions[record.row]) for record in records] if uses_captions else []
    contents = {"images": _describe(records), "captions": parts_hash(sorted(captions))}
    contents["templates"] = parts_hash(templates)
    if config.validation_data_dir:
        contents["validation images"] = _describe(validation)
    return contents


def _describe(records: Sequence[ImageRecord]) -> str:
    return f"{len(records)} {parts_hash(sorted(record.sha256 for record in records))}"


def model_contents(models: StableDiffusion) -> Contents:
    """Describe the base model: the weights of its parts, and what it predicts at which noise."""
    source, schedule = models.base.source, models.scheduler.config
    keys = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr")
    contents = {
        "UNet": models.hash,
        "VAE": parts_hash(weights_hash(models.vae), models.vae.config.scaling_factor),
        "noise schedule": parts_hash(models.base.prediction_type, *(schedule.get(key) for key in keys)),
    }
    folder = Path(source.path, "unet")
    if models.unet.dtype is torch.bfloat16 and folder.is_dir() and not any(folder.glob("*.safetensors")):
        del contents["UNet"]  # its hash is that of the rounded weights
    if not source.lora:  # fused LoRAs are rounded a little differently on each machine
        contents["text encoder"] = parts_hash(*map(weights_hash, models.text_encoders))
    files = [(find_lora(text), *split_lora(text)) for text in source.lora]  # none for one on the Hub
    contents["LoRAs"] = parts_hash(*((file_sha256(file) if file else path, scale) for file, path, scale in files))
    return contents


@dataclasses.dataclass
class TrainedWith:
    """What a checkpoint was trained with."""

    step: int
    options: dict[str, Any]
    contents: Contents
    validation_images: list[str]  # SHA-256 of those set aside
    batches: str  # fingerprint

    @classmethod
    def read(cls, checkpoint: Path, record: Options) -> "TrainedWith":
        """Read it from an intact checkpoint; what an older version did not save there, from the run's record."""
        progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        saved = progress.get("trained_with", {"options": _reported(record), "contents": {}})
        contents = saved["contents"] or {"UNet": config["base_model_hash"]}
        validation_images, batches = saved.get("validation_images", []), progress["batches"]["fingerprint"]
        return cls(config["step"], saved["options"], contents, validation_images, batches)


def _reported(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in UNREPORTED}


class RunIdentity:
    """Compares a run with the one that its folder holds.

    Attributes:
        validation_images: SHA-256 of the images set aside for validation.
        before: what the checkpoint to resume from was trained with; None without one.
    """

    def __init__(self, options: Options, record: Options):
        self.options, self.record = options, record  # now, and when the run in the folder was last started
        self.contents: Contents = {}
        self.validation_images: list[str] = []
        self.before: TrainedWith | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the run is trained with, for its checkpoints."""
        now = {"options": _reported(self.options), "contents": self.contents}
        return now | {"validation_images": self.validation_images}

    @property
    def changed(self) -> list[str]:
        """The options that differ from those the checkpoint was trained with."""
        return changed_options(self.before.options, self.options) if self.before else []

    def describe_changes(self, restarts: bool) -> list[str]:
        """Return a line for each changed option, and on what follows from that.

        Args:
            restarts: whether a new epoch begins, because other images are batched, or the same ones otherwise.
        """
        if self.before is None:
            return []
        lines = [f"--{name} was {self.before.options[name]}, is now {self.options[name]}" for name in self.changed]
        if inexact := [f"--{name}" for name in self.changed if name in INEXACT]:
            lines.append(f"with another {', '.join(inexact)} the run is no longer bit for bit what it would have been")
        if restarts:
            is_same = self.before.contents.get("images") == self.contents["images"]
            lines.append(f"the {'batches' if is_same else 'images'} have changed: a new epoch begins")
        return lines

    def compare(self, contents: Contents, batches: str = "") -> tuple[list[str], str | None]:
        """Compare what the run is trained with from now on.

        Args:
            batches: their fingerprint, by which images are compared with those of a checkpoint by an older version.

        Returns:
            The options that make it another run, because what they name is something else; and a note on what has
            changed in its place, which may be meant.
        """
        self.contents |= contents
        if self.before is None:
            return [], None
        if batches and batches == self.before.batches:
            self.before.contents.setdefault("images", contents["images"])
        differing, changed = [], []
        for kind, content in contents.items():
            before = self.before.contents.get(kind)
            moved = [option for option in PLACES[kind] if self.options[option] != self.record.get(option)]
            if before == content or (before is None and not moved):
                continue
            if kind in MODEL_PARTS or moved:
                named = [option for option in PLACES[kind] if self.options[option]]
                option = [*moved, *named, "pretrained_model_name_or_path"][0]
                values = f"was {self.record.get(option)}, now {self.options[option]}; " if moved else ""
                differing.append(f"{option} ({values}{'other' if kind.endswith('s') else 'another'} {kind})")
            elif kind == "images":
                changed.append(f"images ({str(before).split()[0]} then, {content.split()[0]} now)")
            elif kind == "templates" or (kind == "captions" and not changed):  # other images have other captions
                changed.append(kind)
        note = f"changed since step {self.before.step}: {', '.join(changed)}; the run continues with what is there now"
        return differing, note if changed else None
