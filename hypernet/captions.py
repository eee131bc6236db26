"""The caption of an image and the templates around it, by the WebUI's rules."""

import re
from pathlib import Path

from hypernet.errors import UserError


def read_caption(image_path) -> str:
    """The text of the sidecar `.txt` of the same stem, else the file name without extension and leading number.

    Leading digits and dashes, and the spaces after them, are removed from a file name ("03-a cat.png" -> "a cat").

    Raises:
        UserError: if the sidecar is not UTF-8.
    """
    image_path = Path(image_path)
    sidecar = image_path.with_suffix(".txt")
    if not sidecar.is_file():
        return re.sub(r"^[-\d]+\s*", "", image_path.stem)
    try:
        return sidecar.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{sidecar}: it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None


def read_templates(template: str) -> list[str]:
    """The lines of a template file that are not empty; any other text is a template itself.

    Raises:
        UserError: for a file without such lines, or a text that can only be meant as a file.
    """
    if not template.lower().endswith(".txt"):
        return [template]
    try:
        lines = [line.strip() for line in Path(template).read_text(encoding="utf-8-sig").splitlines()]
    except OSError:
        raise UserError(f"{template}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{template}: it is not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if not any(lines):
        raise UserError(f"{template}: it is empty; write a line such as: a picture of [filewords], by [name]")
    return [line for line in lines if line]


def fill_template(template: str, caption: str, name: str) -> str:
    """The prompt: `[filewords]` becomes the caption, `[name]` the hypernetwork's name."""
    return template.replace("[filewords]", caption).replace("[name]", name)
