"""Which images were made of one picture, as examples/prepare.py writes it down beside them."""

import copy
import json
from pathlib import Path

from hypernet.data.dataset import TrainingDataset, encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import ImageSource, open_image_folder
from hypernet.stable_diffusion.model import StableDiffusion
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed

RECORD = "prepare.jsonl"  # a line for each picture, with its name as "source" and what was made of it as "files"


def find_source_images(paths: list[str]) -> dict[str, tuple[Path, str]]:
    """Image -> the record that names it, and the picture there that it is a part or a mirrored copy of.

    The record is the nearest one in the folders above an image. Images that it does not name are left out.
    """
    records, origins = {}, {}
    for path in paths:
        absolute = Path(path).absolute()
        record = _nearest(absolute.parent, records)
        if absolute in record:
            origins[path] = record[absolute]
    return origins


def _nearest(folder: Path, records: dict) -> dict:
    """What the record in this folder says, or else that of the folder above; `records` keeps what was found."""
    if folder not in records:
        if (folder / RECORD).is_file():
            records[folder] = _read(folder / RECORD)
        else:
            records[folder] = {} if folder == folder.parent else _nearest(folder.parent, records)
    return records[folder]


def _read(path: Path) -> dict[Path, tuple[Path, str]]:
    """Of each image its picture; lines that are damaged tell nothing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    entries = [entry for entry in map(_parse, lines) if isinstance(entry, dict)]
    made = [(entry.get("source"), entry.get("files")) for entry in entries]
    made = [(source, files) for source, files in made if isinstance(source, str) and isinstance(files, list)]
    return {path.parent / str(file): (path, source) for source, files in made for file in files}


def _parse(line: bytes):
    try:
        return json.loads(line)
    except ValueError:
        return None


def open_validation_folder(config) -> ImageSource | None:
    """The folder of held-out images, if one is named. Raises: UserError if it cannot be used."""
    return open_image_folder(config, "validation_data_dir") if config.validation_data_dir else None


def split_validation(source: ImageSource, folder: ImageSource | None, pictures: list[ImageRecord], config, multiple: int, before=()):
    """(source, pictures) to measure on, of the folder or a share of the pictures; and the pictures left to train on.

    A share is chosen by the images' bytes, so that copies stay together; so do the parts and mirrored copies that
    examples/prepare.py has made of one picture. Those that a run has held out `before` (their sha256) stay so, and what
    has been added since is trained on, but for what is made of a picture that is held out: that is left out.

    Raises:
        UserError: if nothing is left on either side.
    """
    if folder is not None:
        return _from_folder(folder, pictures, config, multiple)
    families = _families(source, pictures)
    chosen = {picture.sha256 for picture in pictures} & set(before) or _choose(families, config)
    related = chosen.union(*(family for family in families if family & chosen))
    held = [picture for picture in pictures if picture.sha256 in chosen]
    kept = [picture for picture in pictures if picture.sha256 not in related]
    if left_out := len(pictures) - len(held) - len(kept):
        source.notes.append(f"left out: {left_out} that are made of the same pictures as those that are held out")
    if not kept:
        problem = "all other images are made of the pictures that are held out"
        raise UserError(f"--validation_split {config.validation_split}: {problem}; add images")
    return source, held, kept


def _choose(families: list[set[str]], config) -> set[str]:
    """The sha256 of the share: as many whole families as go into it, and of too large ones the smallest."""
    families = sorted(families, key=lambda family: derive_seed("held out", min(family)))
    total, chosen = sum(map(len, families)), set()
    count = max(1, round(config.validation_split * total))
    for family in families:
        if len(chosen | family) <= count:
            chosen |= family
    chosen = chosen or min(families, key=len)
    if len(chosen) == total:
        problem = f"of {total} different images nothing would be left to train on"
        hint = (
            "they are all made of one picture; add others" if len(families) == 1 < total else "lower it, or add images"
        )
        raise UserError(f"--validation_split {config.validation_split}: {problem}; {hint}")
    return chosen


def _families(source, pictures) -> list[set[str]]:
    """The sha256 of all images, together with those that are made of the same picture."""
    paths = dict(enumerate(image["path"] for image in source.images["image"][:])) if source.is_folder else {}
    origins = find_source_images(list(paths.values()))
    families = {}  # of each sha256 and each origin all that belong together, of both kinds
    for picture in pictures:
        keys = {picture.sha256, origins.get(paths.get(picture.row))} - {None}
        together = keys.union(*(families.get(key, ()) for key in keys))
        families |= dict.fromkeys(together, together)
    distinct = {id(family): family for family in families.values()}.values()
    return [{key for key in family if isinstance(key, str)} for family in distinct]


def _from_folder(source, pictures, config, multiple):
    found, problems = index_images(source, config, multiple)
    trained_on = {picture.sha256 for picture in pictures}
    held = [picture for picture in found if picture.sha256 not in trained_on]
    if not held:
        raise UserError(f"{source.option}: every image in it is trained on, too; hold out others")
    source.notes += problems
    if len(held) < len(found):
        source.notes.append(f"{len(found) - len(held)} images of {source.option} are trained on, and so not held out")
    return source, held, pictures


def describe_validation(source: ImageSource, pictures) -> str:
    """What a run says at its start about the images that it holds out."""
    notes = [f"note: {note}" for note in source.notes] if source.option.startswith("--validation") else []
    names = ", ".join(source.label(picture.row) for picture in pictures[:6])
    more = ", ..." if len(pictures) > 6 else ""
    return "\n".join([*notes, f"images held out, never trained on: {len(pictures)} ({names}{more})"])


def encode_validation(models: StableDiffusion, source: ImageSource, pictures, config, vae_dtype) -> TrainingDataset:
    """The images as they are: one crop, not mirrored, the VAE's mean, the whole caption."""
    plain = copy.copy(config)
    plain.crop = "center" if config.crop == "random" else config.crop
    plain.random_flip, plain.latent_sampling = False, "deterministic"
    plain.shuffle_tags, plain.tag_dropout, plain.caption_dropout, plain.caption_variants = False, 0.0, 0.0, None
    plain.seed = 0  # of the draw among several templates or captions
    return encode_dataset(models, source, pictures, plain, vae_dtype)
