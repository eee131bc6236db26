"""Where images and captions come from: a folder as the WebUI or `imagefolder` has it, or a data set of `datasets`."""

import csv
import dataclasses
import io
import json
import os
from pathlib import Path

import datasets

from hypernet.captions import caption_from_name, read_text
from hypernet.errors import UserError
from hypernet.pictures import MAX_BYTES

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")


@dataclasses.dataclass
class Source:
    """Images that have not been opened yet, and their captions, one or several for each."""

    option: str  # that it comes from, for messages
    images: datasets.Dataset  # with a column "image" of {"bytes", "path"}
    captions: list[tuple[str, ...]]
    is_folder: bool
    problems: list[str] = dataclasses.field(default_factory=list)  # files that cannot even be named

    def __len__(self):
        return len(self.captions)

    def name(self, row: int) -> str:
        """The image's path, or its place in the data set."""
        return self.images[row]["image"]["path"] if self.is_folder else f"row {row} of {self.option}"

    def label(self, row: int) -> str:
        """A short name: the file's, or its place in the data set."""
        return Path(self.name(row)).name if self.is_folder else f"row {row}"

    def read(self, row: int) -> bytes:
        """The bytes of an image file; of one that is too large to be used only so many that this can be seen.

        Raises:
            ValueError: with the reason, if there is none or it cannot be read.
        """
        image = self.images[row]["image"] or {"bytes": None, "path": None}
        if image["bytes"] is not None:
            return image["bytes"]
        if image["path"] is None:
            raise ValueError("it holds no image")
        try:
            with open(image["path"], "rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror})") from None

    def stamps(self) -> list[str]:
        """A text for each image that stays the same as long as the image does, found without reading it.

        A file is taken as unchanged while its path, size and time of modification are.
        """
        if not self.is_folder:
            return [f"{self.images._fingerprint}/{row}" for row in range(len(self))]
        return [_stamp(image["path"]) for image in self.images["image"][:]]


def _stamp(path):
    try:
        status = os.stat(path)
    except OSError:  # a link to nowhere; reading it will tell
        return path
    return f"{os.path.abspath(path)}/{status.st_size}/{status.st_mtime_ns}"


def open_source(config) -> Source:
    """The images and captions that the options name.

    Raises:
        UserError: for a folder, data set or column that is not there, or a caption file that cannot be read.
    """
    return _open_dataset(config) if config.dataset_name else _open_folder(config)


# --- A folder


def _open_folder(config):
    folder = Path(config.train_data_dir)
    option = f"--train_data_dir {folder}"
    files, metadata, problems = _walk(folder, option)
    described = {}
    for file in metadata:
        described.update(_read_metadata(file, config.caption_column))
    captions = [_caption_of(path, described, config) for path in files]
    images = datasets.Dataset.from_dict({"image": [str(path) for path in files]})
    return Source(option, images.cast_column("image", datasets.Image(decode=False)), captions, True, problems)


def _walk(folder, option):
    """Image and metadata files below `folder`, sorted, without hidden ones; and a line for each that has no proper name.

    (`imagefolder` itself would take a sub-folder or a file called "test" for another split.)
    """
    if not folder.is_dir():
        raise UserError(f"{option}: {'it is a file' if folder.exists() else 'there is no such folder'}")
    files, metadata, problems = [], [], []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if name in METADATA_NAMES:
                metadata.append(Path(parent, name))
            elif not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES:
                path = os.path.join(parent, name)
                if not _has_surrogates(path):
                    files.append(Path(path))
                else:
                    problems.append(f"{ascii(path)}: its name is not UTF-8; rename it")
    if not files:
        raise UserError(f"{option}: there is no image in it (PNG, JPEG, WebP, BMP, GIF or TIFF)")
    return sorted(files), sorted(metadata), problems


def _has_surrogates(text):
    return any("\ud800" <= letter <= "\udfff" for letter in text)


def _caption_of(path, described, config):
    """By the WebUI's order: NAME.txt, then what a metadata file says, then the file's name."""
    sidecar = path.with_suffix(".txt")
    if sidecar.is_file():
        return (read_text(sidecar).strip(),)
    if path in described:
        return described[path]
    return (caption_from_name(path.stem, config.filename_word_regex, config.filename_join_string),)


def _read_metadata(file, column):
    """{image path: captions} of a metadata file, as https://huggingface.co/docs/datasets/image_load lays it out."""
    text = read_text(file)
    try:
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file}: it cannot be read ({error})") from None
    described = {}
    for number, row in enumerate(rows, start=1):
        columns = row if isinstance(row, dict) else {}
        for needed in ("file_name", column):
            if needed and needed not in columns:
                hint = "; name the captions with --caption_column" if needed == column else ""
                found = ", ".join(map(str, columns)) or "no columns"
                raise UserError(f"{file}: row {number} has no {needed!r}, it has {found}{hint}")
        try:
            described[file.parent / str(row["file_name"])] = _alternatives(row[column] if column else "")
        except ValueError as error:
            raise UserError(f"{file}: row {number}, column {column}: {error}") from None
    return described


def _alternatives(caption) -> tuple[str, ...]:
    """A caption, or a list of them, as the captions of which one is drawn each time."""
    texts = caption if isinstance(caption, list) else [caption]
    for text in texts:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"it holds no text, but {type(text).__name__}")
    return tuple((text or "").strip() for text in texts) or ("",)


# --- A data set


def _open_dataset(config):
    option = f"--dataset_name {config.dataset_name}"
    table = _load_dataset(config, option)
    columns = ", ".join(table.column_names)
    if len(table) == 0:
        raise UserError(f"{option}: it is empty")
    for name in ("image_column", "caption_column"):
        column = getattr(config, name)
        if column and column not in table.column_names:
            raise UserError(f"--{name} {column}: {option} has no such column; it has {columns}")
    _check_images(table, config.image_column)
    captions = _dataset_captions(table, config.caption_column)
    images = table.select_columns([config.image_column])
    if config.image_column != "image":
        images = images.rename_column(config.image_column, "image")
    return Source(option, images.cast_column("image", datasets.Image(decode=False)), captions, is_folder=False)


def _load_dataset(config, option):
    name = config.dataset_name
    is_saved = Path(name, "state.json").is_file() or Path(name, "dataset_dict.json").is_file()
    if is_saved and config.dataset_config_name:
        raise UserError(
            f"--dataset_config_name {config.dataset_config_name}: {option} was saved by datasets and has none"
        )
    try:
        if is_saved:
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config.dataset_config_name)
    except Exception as error:  # whatever loading scripts, parsers and the connection raise
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{option}: it cannot be loaded, neither from here nor from the Hub ({reason})") from None
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if "train" not in loaded and len(loaded) > 1:
        raise UserError(f'{option}: it has no split "train"; it has {", ".join(loaded)}')
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))


def _check_images(table, column):
    if not isinstance(table.features[column], datasets.Image):
        images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
        problem = f"it holds no images; columns with images: {', '.join(images) or 'none'}"
        raise UserError(f"--image_column {column}: {problem}")


def _dataset_captions(table, column):
    if not column:
        return [("",)] * len(table)
    kind = table.features[column]
    kind = getattr(kind, "feature", kind)  # of a list
    if not isinstance(kind, datasets.Value) or "string" not in kind.dtype:
        holding = kind.dtype if isinstance(kind, datasets.Value) else type(kind).__name__
        problem = f"it holds no text, but {holding}; columns: {', '.join(table.column_names)}"
        raise UserError(f"--caption_column {column}: {problem}")
    return [_alternatives(caption) for caption in table[column][:]]
