"""Find the images of a folder and the files that may hold their captions; or the images that a file lists.

The ending of a file says what it is. Only a file with an unknown ending, or none, is opened to see if it is an image.
"""

import dataclasses
import os
import re
from pathlib import Path

from hypernet.data.captions import has_surrogates, read_any_encoding
from hypernet.data.image_io import missing_plugin
from hypernet.data.metadata import METADATA_NAMES, METADATA_SUFFIXES, is_json_metadata, match_names, read_entries
from hypernet.utils.errors import UserError, counted
from hypernet.utils.file_kinds import HEAD, check_file, image_kind, other_kind

ENDINGS = {  # of each kind of image
    "PNG": ".png .apng",
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .jfi .pjpeg .mpo",
    "WebP": ".webp",
    "BMP": ".bmp .dib",
    "GIF": ".gif",
    "TIFF": ".tif .tiff",
    "AVIF": ".avif .avifs",
    "HEIC": ".heic .heif .hif .heics .heifs",
    "JPEG XL": ".jxl",
    "JPEG 2000": ".jp2 .j2k .jpx .jpf .jpc .j2c",
    "Targa": ".tga",
    "PNM": ".ppm .pgm .pbm .pnm",
}
IMAGE_SUFFIXES = {suffix: kind for kind, suffixes in ENDINGS.items() for suffix in suffixes.split()}
CAPTION_SUFFIXES = (".txt", ".caption")  # the first takes precedence; kohya's scripts write the second

# Images that are not read: those of drawing programs, and camera raw files
UNREADABLE_SUFFIXES = set(
    ".psd .psb .svg .ai .eps .xcf .kra .ora .clip .csp .sai .sai2 .procreate .mdp .afphoto .exr .hdr "
    ".dng .cr2 .cr3 .nef .arw .raf .orf .rw2 .pef .srw".split()
)
# Files that may hold captions but are not read: of the image with the same name, or of many images
DOCUMENT_SUFFIXES = {".cap", ".tag", ".tags", ".text", ".md", ".yaml", ".yml", ".xml", ".rtf", ".doc", ".docx", ".odt"}
TABLE_SUFFIXES = {".json", ".json1", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".xls", ".xlsx", ".ods"}
# Files that are not images, so they are not opened: what trainers and programs leave beside images, and copies
OTHER_SUFFIXES = set(
    ".npz .npy .safetensors .pt .pth .ckpt .bin .arrow .lock .toml .ini .cfg .conf .log .db .sqlite .xmp .aae .thm "
    ".html .htm .css .js .py .ipynb .sh .bat .ps1 .url .webloc .lnk .desktop .exe .dll .pdf .zip .7z .rar .tar .gz .xz "
    ".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .gifv .mp3 .m4a .wav .flac .ogg .srt "
    ".bak .old .orig .tmp .temp .swp .part .crdownload .download .torrent".split()
)
OWN_NAMES = {"prepare.jsonl"}  # written by examples/prepare.py
# The templates of a folder's images, unless the file is the caption of template.png or the like
TEMPLATE_NAME = "template.txt"
# The ending of an image within a name, such as "cat.jpg_large" or "cat.jpg.1"
INNER_ENDING = re.compile(rf"(?i)({'|'.join(map(re.escape, IMAGE_SUFFIXES))})(?![a-z]).*", re.DOTALL)

Place = tuple[str, str]  # a folder, and the name of a file there without its ending


@dataclasses.dataclass
class FolderFiles:
    """The files below a folder, by kind."""

    images: list[Path] = dataclasses.field(default_factory=list)
    metadata: list[Path] = dataclasses.field(default_factory=list)
    texts: list[Path] = dataclasses.field(default_factory=list)
    unread: list[Path] = dataclasses.field(default_factory=list)  # documents and tables
    misnamed: list[Path] = dataclasses.field(default_factory=list)  # images whose names are not UTF-8
    problems: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    # (problem, remedy) -> images
    unreadable: dict[tuple[str, str], list[Path]] = dataclasses.field(default_factory=dict)

    def add_image(self, path: str, kind: str) -> None:
        """Add an image, or the reason why it cannot be read."""
        if missing_plugin(kind):
            kind = image_kind(read_head(path)) or kind  # a JPEG may have the ending of another kind
        if kind == "Photoshop":
            self.add_unreadable(path, f"{kind} files are not supported", "save them as PNG or JPEG")
        elif command := missing_plugin(kind):
            self.add_unreadable(path, f"{kind} images need a plugin", command)
        elif has_surrogates(path):
            self.misnamed.append(Path(path))
            self.problems.append(f"{ascii(path)[1:-1]}: its name is not UTF-8; rename it")
        else:
            self.images.append(Path(path))

    def add_unreadable(self, path: str, problem: str, remedy: str) -> None:
        self.unreadable.setdefault((problem, remedy), []).append(Path(path))

    def finish(self) -> None:
        """Sort the paths, and note images that cannot be read, unless another image of the same name can."""
        for paths in (self.images, self.metadata, self.texts, self.unread):
            paths.sort(key=lambda path: os.path.normcase(path).split(os.sep))  # as paths compare, but faster
        places = {place for path in self.images for place in image_places(path)} if self.unreadable else set()
        for (problem, remedy), paths in sorted(self.unreadable.items()):
            if lost := [path for path in paths if place_of(path) not in places]:
                example = ascii(str(min(lost)))[1:-1] if has_surrogates(str(min(lost))) else min(lost)
                self.notes.append(f"{problem} ({len(lost)}, such as {example}); {remedy}")


def image_stem(path: Path) -> str:
    """Return the name of an image without its ending. A name like "v1.2 final" has none."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return path.stem
    return INNER_ENDING.sub("", path.name) or path.name


def place_of(path: Path) -> Place:
    """Return the place of a file, which an image and its text file share."""
    return os.path.dirname(path), path.stem


def image_places(path: Path) -> list[Place]:
    """Return the place of each text file that may hold the caption of an image."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return [place_of(path)]
    stems = dict.fromkeys([image_stem(path), path.name, path.stem])
    return [(os.path.dirname(path), stem) for stem in stems]


def find_image_kind(path: str) -> str | None:
    """Return what kind of image a file is, by its ending, else by its first bytes; None if it is not an image."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in IMAGE_SUFFIXES:
        return IMAGE_SUFFIXES[suffix]
    if suffix in OTHER_SUFFIXES or suffix in UNREADABLE_SUFFIXES or suffix.endswith("~"):
        return None
    return image_kind(read_head(path))


def read_head(path: str | Path) -> bytes:
    """Return the first bytes of a file; nothing if it cannot be read."""
    try:
        check_file(path)  # opening a pipe would wait
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def find_files(root: Path) -> FolderFiles:
    """Walk the folder. (`imagefolder` would take a subfolder or file called "test" for another split.)"""
    found, seen = FolderFiles(), set()

    def report(error: OSError) -> None:
        found.problems.append(f"{ascii(error.filename)[1:-1]}: it cannot be read ({error.strerror})")

    for parent, folders, names in os.walk(root, onerror=report, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to a folder already visited
            folders[:] = []
            continue
        seen.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders.sort(key=lambda name: os.path.islink(os.path.join(parent, name)))  # links last  # noqa: B023
        for name in names:
            if not name.startswith(".") and name not in OWN_NAMES:
                _add_file(found, os.path.join(parent, name), name)
    found.finish()
    return found


def _add_file(found: FolderFiles, path: str, name: str) -> None:
    suffix = os.path.splitext(name)[1].lower()
    if name in METADATA_NAMES:
        found.metadata.append(Path(path))
    elif suffix in CAPTION_SUFFIXES:
        found.texts.append(Path(path))
    elif suffix == ".json" and name.lower().startswith("meta") and is_json_metadata(Path(path)):
        found.metadata.append(Path(path))
    elif suffix in DOCUMENT_SUFFIXES or suffix in TABLE_SUFFIXES:
        found.unread.append(Path(path))
    elif kind := find_image_kind(path):
        found.add_image(path, kind)
    elif suffix in UNREADABLE_SUFFIXES:
        found.add_unreadable(path, f"{suffix} files are not supported", "save them as PNG or JPEG")


# --- Files that list images


def find_listed(file: Path, option: str) -> FolderFiles:
    """Find the images that a metadata file lists, or a text file with a path on each line.

    Paths are absolute or relative to the file's folder, in a text file also to the current one. Other spellings are
    accepted as `match_names` does; in a text file only if no line is the path of a file. Text files beside the images
    and, for a text file, metadata files there are found too.

    Raises:
        UserError: if the file is something else, or lists no image.
    """
    head = read_head(file)
    if kind := "an image" if image_kind(head) else other_kind(head):
        raise UserError(f"{option} {file}: it is {kind}; name a folder, or a text file with a path on each line")
    is_metadata = file.suffix.lower() in METADATA_SUFFIXES
    names = [name for name, _ in read_entries(file, "")] if is_metadata else _read_list(file)
    paths = (os.path.normpath(os.path.join(file.parent, name)) for name in names if "\0" not in name)
    known = [Path(path) for path in dict.fromkeys(paths) if os.path.isfile(path)]
    if not known or (is_metadata and len(known) < len(set(names))):  # the folder may be large
        known = list(dict.fromkeys([*known, *find_files(file.parent).images]))
    exact, guessed = match_names(names, file.parent, known)
    matched, found = exact | guessed, FolderFiles(metadata=[file] if is_metadata else [])
    unknown = [name for name in names if name not in matched]
    if not matched:
        problem = f"none of its {counted(len(names), 'entry', 'entries')} names an image"
        hint = f"write the path of an image on each line, absolute or relative to {file.parent}"
        example = f', such as "{unknown[0]}"' if unknown else ""
        raise UserError(f"{option} {file}: {problem}{example}; {hint}")
    for path in sorted(set(matched.values())):
        found.add_image(str(path), find_image_kind(str(path)) or "unknown")
    if not is_metadata:
        if unknown:
            count = f"lines that name no image: {len(unknown)} of {len(names)}"
            found.notes.append(f'{file}: {count}, such as "{unknown[0]}"')
        if len(names) > len(unknown) + len(set(matched.values())):
            found.notes.append(f"{file}: lines that name the same image count once; {file}:2 repeats all of them")
    _add_captions(found, is_metadata)
    found.finish()
    return found


def _read_list(file: Path) -> list[str]:
    """Return the path on each line, without quotes around it; a line that begins with # is a comment."""
    names = []
    for line in read_any_encoding(file).split("\n"):
        name = re.sub(r"""^(["'])(.*)\1$""", r"\2", line.strip())
        if not name or name.startswith("#"):
            continue
        name = os.path.expanduser(name)
        is_relative_here = not os.path.exists(os.path.join(file.parent, name)) and os.path.isfile(name)
        names.append(os.path.abspath(name) if is_relative_here else name)
    return names


def _add_captions(found: FolderFiles, is_metadata: bool) -> None:
    """Add the text files of the images, and the metadata files beside them unless there is one already."""
    places = {place for path in found.images for place in image_places(path)}
    for folder in {path.parent for path in found.images}:
        for name in os.listdir(folder):
            stem, suffix = os.path.splitext(name)
            if suffix.lower() in CAPTION_SUFFIXES and ((str(folder), stem) in places or name.lower() == TEMPLATE_NAME):
                found.texts.append(folder / name)
            elif name in METADATA_NAMES and not is_metadata:
                found.metadata.append(folder / name)
