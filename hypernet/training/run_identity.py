"""Identify a run by the contents of its images, captions, templates and base model, besides its options.

Paths do not matter, so a project may be moved or renamed. Every checkpoint records what it was trained with, and a
resumed run is compared with that record.
"""

import collections
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
from hypernet.utils.errors import counted
from hypernet.utils.hashing import file_sha256

PROGRESS = "progress.json"  # in a checkpoint: all that is neither weights nor optimizer state
Contents = dict[str, str]  # kind -> hash

# Kind of content -> the options that locate it. The kinds of the base model come last: if one differs, the run is
# refused, since its losses would not be comparable
PLACES: dict[str, tuple[str, ...]] = {
    "images": ("train_data_dir", "dataset_name"),
    "captions": (),
    "repeats": ("train_data_dir",),
    "templates": ("template",),
    "validation images": ("validation_data_dir",),
    "UNet": ("pretrained_model_name_or_path", "revision", "variant"),
    "VAE": ("pretrained_vae_model_name_or_path",),
    "text encoder": ("model_config", "original_config"),
    "noise schedule": (),
    "model configuration": (),
    "LoRAs": ("lora",),
}
MODEL_PARTS = tuple(PLACES)[5:]
ONCE = "1"  # the repeats of a run that repeats no image


def data_contents(
    source: ImageSource,
    records: Sequence[ImageRecord],
    validation: Sequence[ImageRecord],
    config: TrainingConfig,
) -> Contents:
    """Return hashes of the images, regardless of names and order, of their captions and repeats, and of the templates.

    Args:
        records: all images of the source, those set aside for validation included.
        validation: the validation images.
    """
    templates, of_images = read_templates(config.template), source.templates(config.template)
    used = [(record.sha256, of_images[record.row]) for record in records]
    uses_captions = any("[filewords]" in template for _, lines in used for template in lines)
    own = [(digest, *lines) for digest, lines in used if lines != templates]
    captions = [(record.sha256, *source.captions[record.row]) for record in records] if uses_captions else []
    contents = {"images": _describe(records), "captions": parts_hash(sorted(captions))}
    contents["templates"] = parts_hash(templates, *sorted(own))
    repeated = sorted((record.sha256, record.repeats) for record in records if record.repeats > 1)
    contents["repeats"] = parts_hash(*repeated) if repeated else ONCE
    if config.validation_data_dir:
        contents["validation images"] = _describe(validation)
    return contents


def image_digests(source: ImageSource, records: Sequence[ImageRecord]) -> list[str]:
    """Return a short digest of each image and its captions, sorted: "1f3a9c0b2d4e 8c1d02aa"."""
    digests = ((record.sha256[:12], parts_hash(source.captions[record.row])[:8]) for record in records)
    return sorted(map(" ".join, digests))


def count_changes(before: Sequence[str], now: Sequence[str]) -> tuple[int, int]:
    """Compare two results of `image_digests`.

    Returns:
        The number of new images; and the number of captions that have changed or are gone, except those that are gone
        because there are fewer images.
    """
    images_before, images = (collections.Counter(line.split()[0] for line in lines) for lines in (before, now))
    captions_before, captions = (collections.Counter(line.split()[1] for line in lines) for lines in (before, now))
    changed = {line for line in before if line.split()[0] in images} - set(now)
    gone = (captions_before - captions).total() - max(0, len(before) - len(now))
    return (images - images_before).total(), max(len(changed), gone)


def _describe(records: Sequence[ImageRecord]) -> str:
    return f"{len(records)} {parts_hash(sorted(record.sha256 for record in records))}"


def model_contents(models: StableDiffusion) -> Contents:
    """Return hashes of the base model: the weights of its parts, the noise schedule with prediction type, the LoRAs."""
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
        vocabularies = (json.dumps(tokenizer.get_vocab(), sort_keys=True) for tokenizer in models.tokenizers)
        contents["text encoder"] = parts_hash(*map(weights_hash, models.text_encoders), *vocabularies)
    parts = (Path(source.path, part, "config.json") for part in ("unet", "vae", "text_encoder", "text_encoder_2"))
    if configs := [json.loads(path.read_text(encoding="utf-8")) for path in parts if path.is_file()]:
        # as they lie there, since each version of diffusers adds options; without its own, such as _diffusers_version
        plain = ({name: value for name, value in config.items() if not name.startswith("_")} for config in configs)
        contents["model configuration"] = parts_hash(*(json.dumps(config, sort_keys=True) for config in plain))
    files = [(find_lora(text), *split_lora(text)) for text in source.lora]  # the file is None for a LoRA on the Hub
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
    image_digests: list[str] = dataclasses.field(default_factory=list)  # empty for checkpoints of earlier versions

    @classmethod
    def read(cls, checkpoint: Path, record: Options) -> "TrainedWith":
        """Read an intact checkpoint; what an older version did not save there is taken from the run's record."""
        progress = json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8"))
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        saved = progress.get("trained_with", {"options": _reported(record), "contents": {}})
        contents = saved["contents"] or {"UNet": config["base_model_hash"]}
        contents.setdefault("repeats", ONCE)  # of an earlier version
        validation_images, batches = saved.get("validation_images", []), progress["batches"]["fingerprint"]
        digests = saved.get("image_digests", [])
        return cls(config["step"], saved["options"], contents, validation_images, batches, digests)


def _reported(options: Options) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in UNREPORTED}


class RunIdentity:
    """Compares a run with the one in its folder.

    Attributes:
        validation_images: SHA-256 of the images set aside for validation.
        image_digests: `image_digests` of all images.
        before: what the checkpoint to resume from was trained with; None without one.
    """

    def __init__(self, options: Options, record: Options):
        self.options, self.record = options, record  # now, and when the run in the folder was last started
        self.contents: Contents = {}
        self.validation_images: list[str] = []
        self.image_digests: list[str] = []
        self.before: TrainedWith | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return what the run is trained with, for its checkpoints."""
        now = {"options": _reported(self.options), "contents": self.contents}
        return now | {"validation_images": self.validation_images, "image_digests": self.image_digests}

    @property
    def changed(self) -> list[str]:
        """The options that differ from those the checkpoint was trained with."""
        return changed_options(self.before.options, self.options) if self.before else []

    def describe_changes(self, restarts: bool) -> list[str]:
        """Return a line for each changed option and for each consequence of the changes.

        Args:
            restarts: whether a new epoch begins because the images or the batches have changed.
        """
        if self.before is None:
            return []
        lines = [f"--{name} was {self.before.options[name]}, is now {self.options[name]}" for name in self.changed]
        if inexact := [f"--{name}" for name in self.changed if name in INEXACT]:
            lines.append(f"with another {', '.join(inexact)} the run no longer equals an uninterrupted one bit for bit")
        if restarts:
            is_same = self.before.contents.get("images") == self.contents["images"]
            lines.append(f"the {'batches' if is_same else 'images'} have changed: a new epoch begins")
        return lines

    def compare(
        self, contents: Contents, batches: str = "", image_digests: Sequence[str] = ()
    ) -> tuple[list[str], str | None]:
        """Compare the contents that the run trains with from now on with those of its checkpoint.

        Args:
            batches: the fingerprint of the batches, which identifies the images of a checkpoint of an older version.
            image_digests: those of all images, to count the images and captions that have changed.

        Returns:
            The options that make it a different run because their contents differ; and a note on contents that have
            changed in place, which is allowed.
        """
        self.contents |= contents
        self.image_digests = list(image_digests) or self.image_digests
        if self.before is None:
            return [], None
        if batches and batches == self.before.batches:
            self.before.contents.setdefault("images", contents["images"])
        differing: dict[str, tuple[str, list[str]]] = {}  # option -> its values, and what differs
        changed = []
        new_images, new_captions = count_changes(self.before.image_digests, self.image_digests)
        for kind, content in contents.items():
            before = self.before.contents.get(kind)
            moved = [option for option in PLACES[kind] if self.options.get(option) != self.record.get(option)]
            if before == content or (before is None and not moved):
                continue
            if kind in MODEL_PARTS or moved:
                given = [option for option in PLACES[kind] if self.options[option]]
                option = [*moved, *given, "pretrained_model_name_or_path"][0]
                both = self.record.get(option), self.options[option]
                was, is_now = (" ".join(value) if isinstance(value, list) else value for value in both)
                values = f"was {was}, now {is_now}; " if moved else ""
                difference = f"{'different' if kind.endswith('s') else 'a different'} {kind}"
                differing.setdefault(option, (values, []))[1].append(difference)
            elif kind == "images":
                then, now = str(before).split()[0], content.split()[0]
                count = f"{new_images} of {counted(int(now), 'image')}"
                is_counted = then == now and self.before.image_digests
                changed.append(count if is_counted else f"images ({then} then, {now} now)")
            elif kind == "captions" and self.before.image_digests:
                if new_captions:
                    changed.append(f"{new_captions} of {counted(len(self.image_digests), 'caption')}")
            elif kind in ("templates", "repeats"):
                changed.append(kind)
            elif kind == "captions" and not changed:  # other images have other captions
                changed.append(kind)
        note = f"changed since step {self.before.step}: {', '.join(changed)}; the run continues with the new contents"
        named = [f"{option} ({values}{', '.join(kinds)})" for option, (values, kinds) in differing.items()]
        return named, note if changed else None
