"""Where images and captions come from: a folder as the WebUI or `imagefolder` has it, or a data set of `datasets`."""

import dataclasses
import os
from pathlib import Path

import datasets

from hypernet.data.image_folder import IMAGE_SUFFIXES, alternatives, option_text, read_image_folder
from hypernet.data.image_io import MAX_BYTES
from hypernet.utils.errors import UserError


@dataclasses.dataclass
class ImageSource:
    """Images that have not been opened yet, and their captions, one or several for each."""

    option: str  # that it comes from, for messages
    images: datasets.Dataset  # with a column "image" of {"bytes", "path"}
    captions: list[tuple[str, ...]]
    is_folder: bool
    problems: list[str] = dataclasses.field(default_factory=list)  # files and folders that cannot be used at all
    notes: list[str] = dataclasses.field(default_factory=list)  # what the user may have meant otherwise
    written: list[bool] = dataclasses.field(default_factory=list)  # of a folder: captions that are no file's name

    def __len__(self):
        return len(self.captions)

    def name(self, row: int) -> str:
        """The image's path, or its place in the data set."""
        if not self.is_folder:
            return f"row {row} of {self.option}"
        return "".join(letter if letter.isprintable() else "?" for letter in self.images[row]["image"]["path"])

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


def open_image_source(config) -> ImageSource:
    """The images and captions that the options name to train on.

    Raises:
        UserError: for a folder, data set or column that is not there, or a caption file that cannot be read.
    """
    return _open_dataset(config) if config.dataset_name else open_image_folder(config, "train_data_dir")


def open_image_folder(config, option: str) -> ImageSource:
    """The images and captions of the folder that this option names. Raises: UserError, as above."""
    folder = read_image_folder(config, option)
    images = datasets.Dataset.from_dict({"image": [str(path) for path in folder.images]})
    images = images.cast_column("image", datasets.Image(decode=False))
    option = option_text(config, option)
    return ImageSource(option, images, folder.captions, True, folder.problems, folder.notes, folder.written)


def _open_dataset(config):
    option = f"--dataset_name {config.dataset_name}"
    if os.path.isdir(config.dataset_name):
        if any(path.suffix.lower() in IMAGE_SUFFIXES for path in Path(config.dataset_name).glob("*")):
            raise UserError(f"{option}: it is a folder of images; name it with --train_data_dir")
    table = _load_dataset(config, option)
    columns = ", ".join(table.column_names)
    if len(table) == 0:
        raise UserError(f"{option}: it is empty")
    for name in ("image_column", "caption_column"):
        column = getattr(config, name)
        if column and column not in table.column_names:
            hint = '; --caption_column "" leaves captions out' if name == "caption_column" else ""
            raise UserError(f"--{name} {column}: {option} has no such column; it has {columns}{hint}")
    _check_images(table, config.image_column)
    captions = _dataset_captions(table, config.caption_column)
    images = table.select_columns([config.image_column])
    if config.image_column != "image":
        images = images.rename_column(config.image_column, "image")
    return ImageSource(option, images.cast_column("image", datasets.Image(decode=False)), captions, is_folder=False)


def _load_dataset(config, option):
    name = config.dataset_name
    is_saved = any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json"))
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
    return [alternatives(caption) for caption in table[column][:]]
