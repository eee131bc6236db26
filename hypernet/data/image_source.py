"""Where images and captions come from: a folder, or a dataset of the Hub or of `datasets`."""

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path

import datasets

from hypernet.config import TrainingConfig
from hypernet.data.captions import caption_alternatives, caption_lines
from hypernet.data.folder_files import IMAGE_SUFFIXES
from hypernet.data.folder_repeats import count_repeats, folder_words, split_folders
from hypernet.data.image_folder import ImageFolder, read_image_folder
from hypernet.data.image_io import MAX_BYTES
from hypernet.data.prompts import read_templates
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import file_problem


@dataclasses.dataclass
class ImageSource:
    """Images that have not been opened yet, and one or several captions for each.

    The last four lists are empty for datasets.
    """

    option: str  # with its value, for messages: "--train_data_dir my_images"
    images: datasets.Dataset  # with a column "image" of {"bytes", "path"}
    captions: list[tuple[str, ...]]
    is_folder: bool
    problems: list[str] = dataclasses.field(default_factory=list)  # a line for each file or folder that cannot be used
    notes: list[str] = dataclasses.field(default_factory=list)  # on likely mistakes
    captioned: list[bool] = dataclasses.field(default_factory=list)  # False for file names
    words: list[str] = dataclasses.field(default_factory=list)  # what [folder] stands for
    template_files: list[str] = dataclasses.field(default_factory=list)  # paths; "" where --template counts
    repeats: list[int] = dataclasses.field(default_factory=list)  # how often each image counts per epoch; default: once

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

    def templates(self, template: str) -> list[list[str]]:
        """Return the prompt templates of each image, with [folder] filled in.

        They are those of its folder's own file, else those that `template`, the value of `--template`, stands for.
        Images of one folder share a list.
        """
        lines = {file: read_templates(file or template) for file in ["", *dict.fromkeys(self.template_files)]}
        if not self.words:
            return [lines[""]] * len(self)
        kinds = list(zip(self.template_files, self.words))
        filled = {
            (file, words): [line.replace("[folder]", words) for line in lines[file]] for file, words in set(kinds)
        }
        return [filled[kind] for kind in kinds]

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
    sources = []
    for path, given in split_folders(config.train_data_dir):
        folder = read_image_folder(Path(path), "--train_data_dir", *caption_rules(config))
        sources.append(_folder_source(folder, Path(path), "--train_data_dir"))
        sources[-1].repeats, notes = count_repeats(Path(path), given, folder.images)
        sources[-1].notes += notes
    return _join(sources)


def caption_rules(config: TrainingConfig) -> tuple[str, str | None, str, bool]:
    """Return the arguments of `read_image_folder` that say where captions come from."""
    return config.caption_column, config.filename_word_regex, config.filename_join_string, config.caption_lines


def open_image_folder(
    path: Path,
    option: str,
    caption_column: str = "text",
    word_regex: str | None = None,
    join_string: str = " ",
    has_lines: bool = False,
) -> ImageSource:
    """Open the images and captions of a folder; arguments and errors are those of `read_image_folder`."""
    folder = read_image_folder(path, option, caption_column, word_regex, join_string, has_lines)
    return _folder_source(folder, path, option)


def _folder_source(folder: ImageFolder, path: Path, option: str) -> ImageSource:
    parents = [image.parent for image in folder.images]
    words = {parent: folder_words(parent) for parent in set(parents)}
    return ImageSource(
        f"{option} {path}",
        _image_table(map(str, folder.images)),
        folder.captions,
        True,
        folder.problems,
        folder.notes,
        folder.captioned,
        [words[parent] for parent in parents],
        folder.template_files,
    )


def _image_table(paths: Iterable[str]) -> datasets.Dataset:
    images = datasets.Dataset.from_dict({"image": list(paths)})
    return images.cast_column("image", datasets.Image(decode=False))


def _join(sources: list[ImageSource]) -> ImageSource:
    """Return one source of the images of several folders, in their order."""
    if len(sources) == 1:
        return sources[0]
    first, *others = sources
    option = " ".join([first.option, *(source.option.partition(" ")[2] for source in others)])
    images = datasets.concatenate_datasets([source.images for source in sources])
    joined = ImageSource(option, images, [], is_folder=True)
    for source in sources:
        for name in ("captions", "problems", "notes", "captioned", "words", "template_files", "repeats"):
            getattr(joined, name).extend(getattr(source, name))
    joined.notes = list(dict.fromkeys(joined.notes))
    return joined


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
    captions = [caption_lines(texts) for texts in captions] if config.caption_lines else captions
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
