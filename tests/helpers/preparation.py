"""Run examples/prepare.py within this process, write folders for it, and compare what it leaves."""

import contextlib
import hashlib
import io
import re

from PIL import ImageOps

from examples import prepare
from examples.quickstart.tools.shapes import draw, random_shape
from hypernet.data.image_folder import read_image_folder


def run_here(source, target, *flags) -> str:
    """Run prepare.py within this process; return what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        prepare.main([str(source), str(target), *map(str, flags)])
    return printed.getvalue()


def labeled(printed, label) -> list[str]:
    """Return the lines that start with a label ("note", "small", ...), without it."""
    return [line.removeprefix(f"{label}: ") for line in printed.splitlines() if line.startswith(f"{label}: ")]


def skipped(printed) -> dict[str, str]:
    """Return the reason for each skipped image."""
    return dict(re.match("(.*?): (.*)", line).groups() for line in labeled(printed, "skipped"))


def summary(printed, target) -> list[int]:
    """Return the numbers of the last line: images, source images used, source images in all, ..."""
    (line,) = labeled(printed, target)
    return [int(number) for number in re.findall(r"\d+", line)]


def scene(seed, size=(96, 96)):
    """Draw a random shape."""
    return ImageOps.fit(draw(random_shape(seed), 96), size)


def write(folder, images, **texts):
    """Write images, each given as itself or by its size, and text files by their stems; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (name, image) in enumerate(images.items()):
        image = scene(i, image) if isinstance(image, tuple) else image
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(folder / name)
    for stem, text in texts.items():
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    return folder


def hashes(folder) -> dict[str, tuple[str, int]]:
    """Return the hash and modification time of every file in a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


def hashes_without_record(folder) -> dict[str, tuple[str, int]]:
    """Return the same for every file but the record, which each run writes anew."""
    return {name: found for name, found in hashes(folder).items() if name != "prepare.jsonl"}


def contents(folder) -> dict[str, str]:
    """Return the hash of every file but the record."""
    return {name: found[0] for name, found in hashes_without_record(folder).items()}


def read_captions(folder) -> dict[str, str]:
    """Return the caption of each image as the trainer reads it without options."""
    found = read_image_folder(folder)
    return {image.relative_to(folder).as_posix(): captions[0] for image, captions in zip(found.images, found.captions)}


def read_clean_captions(folder) -> dict[str, str]:
    """Return the same for a folder in which the trainer finds nothing to report."""
    found = read_image_folder(folder)
    assert not found.problems and not found.notes
    return read_captions(folder)
