"""Choose the validation images, without separating images that examples/prepare.py made from one source image."""

import dataclasses
import json
import typing
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from hypernet.config import TrainingConfig
from hypernet.data.dataset import TrainingDataset, encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import ImageSource, caption_rules, open_image_folder
from hypernet.data.processes import ALONE, Processes
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.utils.errors import MAX_MESSAGE, UserError, counted, one_line
from hypernet.utils.file_kinds import check_file
from hypernet.utils.hashing import derive_seed

RECORD = "prepare.jsonl"  # a line per source image: its name as "source", the images made from it as "files"

Origin = tuple[Path, str]  # the RECORD that lists an image, and its source image there


def open_validation_folder(config: TrainingConfig) -> ImageSource | None:
    """Open the folder of --validation_data_dir, if it is given.

    Raises:
        UserError: if it cannot be used.
    """
    if not config.validation_data_dir:
        return None
    return open_image_folder(Path(config.validation_data_dir), "--validation_data_dir", *caption_rules(config))


def split_validation(
    source: ImageSource,
    folder: ImageSource | None,
    records: list[ImageRecord],
    config: TrainingConfig,
    multiple: int,
    before: Collection[str] = (),
    processes: Processes = ALONE,
) -> tuple[ImageSource, list[ImageRecord], list[ImageRecord]]:
    """Take the validation images from `folder`, or set aside a fraction of the records.

    The choice depends on the images' bytes, so copies of an image end up on the same side. So do the parts and mirrored
    copies that examples/prepare.py made from one source image.

    Args:
        multiple: the model needs image sides that are multiples of this.
        before: SHA-256 of the validation images this run started with. They stay. Images added since are for training,
            except that those made from a validation image's source image are left out.
        processes: as in `index_images`.

    Returns:
        The source of the validation images, their records, and the records left to train on.

    Raises:
        UserError: if either side is left empty.
    """
    if folder is not None:
        return folder, _validation_records(folder, records, config, multiple, processes), records
    families = _families(source, records)
    known = {record.sha256 for record in records} & set(before)
    chosen = known or _choose(families, config.validation_split)
    related = chosen.union(*(family for family in families if family & chosen))
    validation = [record for record in records if record.sha256 in chosen]
    training = [record for record in records if record.sha256 not in related]
    if left_out := len(records) - len(validation) - len(training):
        count = counted(left_out, "image")
        source.notes.append(f"left out: {count} made from the source images of validation images")
    if not training:
        problem = "all other images are made from the source images of validation images; add images"
        raise UserError(f"--validation_split {config.validation_split}: {problem}")
    return source, validation, training


def _validation_records(
    folder: ImageSource, records: list[ImageRecord], config: TrainingConfig, multiple: int, processes: Processes
) -> list[ImageRecord]:
    """Return the images of the folder that are not trained on."""
    found, problems = index_images(folder, config, multiple, processes)
    trained = {record.sha256 for record in records}
    validation = [record for record in found if record.sha256 not in trained]
    if not validation:
        raise UserError(f"{folder.option}: all its images are training images, too; name others")
    folder.notes += problems
    if len(validation) < len(found):
        count = counted(len(found) - len(validation), "image")
        folder.notes.append(f"{count} of {folder.option} ignored there: also used for training")
    return validation


def _choose(families: list[set[str]], fraction: float) -> set[str]:
    """Return the SHA-256 of the validation images: whole families up to `fraction`; the smallest if all exceed it."""
    families = sorted(families, key=lambda family: derive_seed("held out", min(family)))
    total = sum(map(len, families))
    count = max(1, round(fraction * total))
    chosen: set[str] = set()
    for family in families:  # no image is in two of them
        if len(chosen) + len(family) <= count:
            chosen |= family
    chosen = chosen or min(families, key=len)
    if len(chosen) == total:
        problem = f"of {counted(total, 'different image')} none would be left to train on"
        hint = (
            "all are made from one source image; add others"
            if len(families) == 1 < total
            else "lower it, or add images"
        )
        raise UserError(f"--validation_split {fraction}: {problem}; {hint}")
    return chosen


def describe_validation(source: ImageSource, records: list[ImageRecord]) -> str:
    """Return what a run prints about its validation images."""
    own_notes = source.notes if source.option.startswith("--validation") else []
    notes = [one_line(f"note: {note}", MAX_MESSAGE) for note in own_notes]
    names = ", ".join(source.label(record.row) for record in records[:6])
    more = ", ..." if len(records) > 6 else ""
    return "\n".join([*notes, f"validation images, never trained on: {len(records)} ({names}{more})"])


def encode_validation(
    models: StableDiffusion,
    source: ImageSource,
    records: list[ImageRecord],
    config: TrainingConfig,
    vae_dtype: torch.dtype,
    processes: Processes = ALONE,
) -> TrainingDataset:
    """Encode the images without randomness: one crop, not mirrored, the VAE's mean, the whole caption."""
    fixed = dataclasses.replace(
        config,
        crop="center" if config.crop == "random" else config.crop,
        random_flip=False,
        flip_p=None,
        latent_sampling="deterministic",
        shuffle_tags=False,
        tag_dropout=0.0,
        caption_dropout=0.0,
        caption_variants=None,
        seed=0,  # picks among several templates or captions
    )
    return encode_dataset(models, source, records, fixed, vae_dtype, processes)


# --- Images made from the same source image


def _families(source: ImageSource, records: list[ImageRecord]) -> list[set[str]]:
    """Group the images made from the same source image, by SHA-256; every image is in one group."""
    paths = dict(enumerate(image["path"] for image in source.images["image"][:])) if source.is_folder else {}
    origins = find_source_images(list(paths.values()))
    families: dict[str | Origin, set[str | Origin]] = {}  # of each SHA-256 and each origin: all that belong together
    for record in records:
        keys: set[str | Origin] = {record.sha256}
        if paths.get(record.row) in origins:
            keys.add(origins[paths[record.row]])
        together = keys.union(*(families.get(key, ()) for key in keys))
        families |= dict.fromkeys(together, together)
    distinct = {id(family): family for family in families.values()}.values()
    return [{key for key in family if isinstance(key, str)} for family in distinct]


def find_source_images(paths: Sequence[str]) -> dict[str, Origin]:
    """Map images to the source images that examples/prepare.py made them from.

    The nearest RECORD in the folders above an image counts. Images it does not list are left out.
    """
    records: dict[Path, dict[Path, Origin]] = {}
    origins = {}
    for path in paths:
        absolute = Path(path).absolute()
        record = _nearest_record(absolute.parent, records)
        if absolute in record:
            origins[path] = record[absolute]
    return origins


def _nearest_record(folder: Path, records: dict[Path, dict[Path, Origin]]) -> dict[Path, Origin]:
    """Return the record of this folder, or of the nearest one above it; `records` caches those read before."""
    if folder not in records:
        if (folder / RECORD).is_file():
            records[folder] = _read_record(folder / RECORD)
        else:
            records[folder] = {} if folder == folder.parent else _nearest_record(folder.parent, records)
    return records[folder]


def _read_record(path: Path) -> dict[Path, Origin]:
    """Return the origin of each image in a record. Damaged lines are skipped."""
    try:
        check_file(path)
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    origins: dict[Path, Origin] = {}
    for entry in map(_parse, lines):
        source, files = (entry.get("source"), entry.get("files")) if isinstance(entry, dict) else (None, None)
        if isinstance(source, str) and isinstance(files, list):
            origins |= {path.parent / str(file): (path, source) for file in files}
    return origins


def _parse(line: bytes) -> typing.Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
