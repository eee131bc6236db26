"""Read and write infotexts: the WebUI's descriptions of how an image was generated, under `parameters` in a PNG.

    a cat, <hypernet:my_style:0.8>
    Negative prompt: blurry
    Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Model: my model, Version: ...

The format is that of WebUI 1.10: modules/processing.py writes it, modules/infotext_utils.py reads it.
"""

import json
import re
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from hypernet.utils.atomic_files import atomic_write
from hypernet.utils.file_kinds import check_file

KEY = "parameters"
NEGATIVE = "Negative prompt:"
SPACING = "Timestep spacing"  # our own field: "leading", for which the schedule type "Uniform" stands in the WebUI
_FIELD = re.compile(
    r"""
    (?P<name> \w [\w\ /-]{1,100} ) : \s*  # bounded, since a line of megabytes would take forever
    (?P<value> " (?: [^"\\] | \\. )+ " | [^,]* )
    (?: , | $ )
    """,
    re.VERBOSE,
)


def write_infotext(prompt: str, negative_prompt: str, fields: dict[str, Any]) -> str:
    """Return prompts and fields in the WebUI's format, leaving out fields that are None."""
    settings = ", ".join(f"{name}: {_quote(value)}" for name, value in fields.items() if value is not None)
    negative = f"\n{NEGATIVE} {negative_prompt}" if negative_prompt else ""
    return f"{prompt}{negative}\n{settings}".strip()


def _quote(value: object) -> str:
    """Return a value as text, in JSON quotes if it contains a separator."""
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",:\n") else text


def parse_infotext(text: str) -> tuple[str, str, dict[str, str]]:
    """Return prompt, negative prompt and fields, by the WebUI's rules.

    The last line holds the fields if there are at least three; the line that starts with "Negative prompt:" begins the
    negative prompt. Lines are stripped.
    """
    *lines, last = text.strip().split("\n")
    found = list(_FIELD.finditer(last))
    if len(found) < 3:
        lines, found = [*lines, last], []
    prompts: dict[str, list[str]] = {"": [], NEGATIVE: []}
    current = ""
    for line in (line.strip() for line in lines):
        if line.startswith(NEGATIVE):
            current, line = NEGATIVE, line.removeprefix(NEGATIVE).strip()
        prompts[current].append(line)
    fields = {match["name"]: _unquote(match["value"]) for match in found}
    prompt, negative_prompt = ("\n".join(part).lstrip("\n") for part in prompts.values())
    return prompt, negative_prompt, fields


def _unquote(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] == '"':
        try:
            return json.loads(value)
        except ValueError:
            pass
    return value


def save_png(path: str | Path, image: Image.Image, infotext: str) -> None:
    """Write an image with its infotext to a PNG, atomically.

    Characters that are not valid Unicode, as in some file names, become "?".
    """
    info = PngInfo()
    info.add_text(KEY, infotext.encode(errors="replace").decode())
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def read_png_infotext(path: str | Path) -> str | None:
    """Return the infotext of a PNG; None if it has none or cannot be read as an image."""
    try:
        check_file(path)
        with Image.open(path) as image:
            image.load()
            return image.info.get(KEY)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):  # what Pillow raises for damaged files
        return None


def read_image_infotext(path: str | Path) -> str | None:
    """Return the infotext of a PNG, JPEG or WebP; None if there is none. The last two hold it in EXIF's user comment."""
    if (text := read_png_infotext(path)) is not None:
        return text
    try:
        with Image.open(path) as image:
            comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        return comment[8:].decode("utf-16-be", errors="replace")
    return None


def free_path(path: Path, infotext: str) -> Path:
    """Return `path`, or the first of NAME-2, NAME-3, ... that is free or is an image with this infotext."""
    candidate, number = path, 1
    while candidate.exists() and read_png_infotext(candidate) != infotext:
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate
