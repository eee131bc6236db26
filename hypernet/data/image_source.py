"""Where images and captions come from: a folder, or a dataset of the Hub or of `datasets`."""

import dataclasses
import os
from pathlib import Path

import datasets

from hypernet.config import TrainingConfig
from hypernet.data.captions import caption_alternatives
from hypernet.data.image_folder import IMAGE_SUFFIXES, read_image_folder
from hypernet.data.image_io import MAX_BYTES
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import file_problem


@dataclasses.dataclass
class ImageSource:
    """Images that have not been opened yet, and one or several captions for each."""

    option: str  # with its value, for messages: "--train_data_dir my_images"
    images: datasets.Dataset  # with a column "image" of {"bytes", "path"}
    captions: list[tuple[str, ...]]
    is_folder: bool
    problems: list[str] = dataclasses.field(default_factory=list)  # a line for each file or folder that cannot be used
    notes: list[str] = dataclasses.field(default_factory=list)  # on likely mistakes
    captioned: list[bool] = dataclasses.field(default_factory=list)  # folders only; False for file names

    def __len__(self) -> int:
        return len(self.captions)

    def name(self, row: int) -> str:
        """Return the image's path, or its row in the dataset."""
        if not self.is_folder:
            return f"row {row} of {self.option}"
        return "".join(letter if letter.isprintable() else "?" for letter in self.images[row]["image"]["path"])

    def label(self, row: int) -> str:
        """Return a short name: the file's, or the row in the dataset."""
        return Path(self.name(row)).name if self.is_folder else f"row {row}"

    def read(self, row: int) -> bytes:
        """Return the content of an image file, or enough of it to see that it is too large.

        Raises:
            ValueError: if there is none or it cannot be read; the message is the reason.
        """
        image = self.images[row]["image"] or {"bytes": None, "path": None}
        if image["bytes"] is not None:
            return image["bytes"]
        if image["path"] is None:
            raise ValueError("it contains no image")
        if problem := file_problem(image["path"]):
            raise ValueError(problem)
        try:
            with open(image["path"], "rb") as file:
                return file.read(MAX_BYTES + 1)
        except OSError as error:
            raise ValueError(f"it cannot be read ({error.strerror})") from None

    def stamps(self) -> list[str]:
        """Return a string per image that changes when the image does, without reading the image.

        A file counts as unchanged while its path, size and modification time are the same.
        """
        if not self.is_folder:
            return [f"{self.images._fingerprint}/{row}" for row in range(len(self))]
        return [_stamp(image["path"]) for image in self.images["image"][:]]


def _stamp(path: str) -> str:
    try:
        status = os.stat(path)
    except OSError:  # a broken link, which is reported when it is read
        return path
    return f"{os.path.abspath(path)}/{status.st_size}/{status.st_mtime_ns}"


def open_image_source(config: TrainingConfig) -> ImageSource:
    """Open the images and captions to train on.

    Raises:
        UserError: if a folder, dataset or column does not exist, or if a caption file cannot be read.
    """
    if config.dataset_name:
        return _open_dataset(config, config.dataset_name)
    assert config.train_data_dir is not None  # checked with the other options
    rules = config.caption_column, config.filename_word_regex, config.filename_join_string
    return open_image_folder(Path(config.train_data_dir), "--train_data_dir", *rules)


def open_image_folder(
    path: Path, option: str, caption_column: str = "text", word_regex: str | None = None, join_string: str = " "
) -> ImageSource:
    """Open the images and captions of a folder; arguments and errors are those of `read_image_folder`."""
    folder = read_image_folder(path, option, caption_column, word_regex, join_string)
    images = datasets.Dataset.from_dict({"image": [str(image) for image in folder.images]})
    images = images.cast_column("image", datasets.Image(decode=False))
    name = f"{option} {path}"
    return ImageSource(name, images, folder.captions, True, folder.problems, folder.notes, folder.captioned)


def _open_dataset(config: TrainingConfig, name: str) -> ImageSource:
    option = f"--dataset_name {name}"
    if os.path.isdir(name) and any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(name).glob("*")):
        raise UserError(f"{option}: it is a folder of images; name it with --train_data_dir")
    table = _load_dataset(name, config.dataset_config_name)
    if len(table) == 0:
        raise UserError(f"{option}: it is empty")
    for key, column in (("image_column", config.image_column), ("caption_column", config.caption_column)):
        if column and column not in table.column_names:
            hint = '; --caption_column "" is for none' if key == "caption_column" else ""
            problem = f"{option} has no such column; it has {', '.join(table.column_names)}{hint}"
            raise UserError(f"--{key} {column}: {problem}")
    _check_images(table, config.image_column)
    captions = _column_captions(table, config.caption_column)
    images = table.select_columns([config.image_column])
    if config.image_column != "image":
        images = images.rename_column(config.image_column, "image")
    return ImageSource(option, images.cast_column("image", datasets.Image(decode=False)), captions, is_folder=False)


def _load_dataset(name: str, config_name: str | None) -> datasets.Dataset:
    """Load a dataset from the disk or the Hub: its split "train", or its only one."""
    option = f"--dataset_name {name}"
    is_saved = any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json"))
    if is_saved and config_name:
        raise UserError(f"--dataset_config_name {config_name}: {option} was saved by datasets and has none")
    try:
        loaded = datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, config_name)
    except Exception as error:  # dataset builders, parsers and connections raise errors of any kind
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{option}: it cannot be loaded, neither as a local path nor from the Hub ({reason})") from None
    if isinstance(loaded, datasets.Dataset):
        return loaded
    if "train" not in loaded and len(loaded) > 1:
        raise UserError(f'{option}: it has no split "train"; it has {", ".join(loaded)}')
    return loaded["train"] if "train" in loaded else next(iter(loaded.values()))


def _check_images(table: datasets.Dataset, column: str) -> None:
    if not isinstance(table.features[column], datasets.Image):
        images = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
        problem = f"it contains no images; columns with images: {', '.join(images) or 'none'}"
        raise UserError(f"--image_column {column}: {problem}")


def _column_captions(table: datasets.Dataset, column: str) -> list[tuple[str, ...]]:
    if not column:
        return [("",)] * len(table)
    kind = table.features[column]
    kind = getattr(kind, "feature", kind)  # of a list's items
    if not isinstance(kind, datasets.Value) or "string" not in kind.dtype:
        found = kind.dtype if isinstance(kind, datasets.Value) else type(kind).__name__
        problem = f"it must be text, not {found}; columns: {', '.join(table.column_names)}"
        raise UserError(f"--caption_column {column}: {problem}")
    captions = []
    for row, cell in enumerate(table[column][:]):
        try:
            captions.append(caption_alternatives(cell))
        except ValueError as error:
            raise UserError(f"--caption_column {column}: row {row}: {error}") from None
    return captions
