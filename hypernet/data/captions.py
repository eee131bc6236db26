"""Captions from text files, file names and cells of a table."""

import collections
import errno
import re
from collections.abc import Iterable
from pathlib import Path

from hypernet.utils.errors import UserError, counted
from hypernet.utils.file_kinds import HEAD, check_file, image_kind
from hypernet.utils.reading import decode_text

MAX_CAPTION = 2**16  # bytes or characters; longer text is not a caption, and takes a tokenizer seconds
MAX_BYTES = 2**26  # of other text files, such as the metadata of 100,000 images
SAVE = "; save it as UTF-8"


def caption_from_name(stem: str, word_regex: str | None = None, join_string: str = " ") -> str:
    """Turn a file name without its extension into a caption: "03-a cat" becomes "a cat".

    As in the WebUI, leading digits and dashes, and spaces after them, are dropped. With `word_regex`, the caption is
    its matches (those of its group, if it has one), joined by `join_string`.
    """
    text = re.sub(r"^[-\d]+\s*", "", stem)
    return join_string.join(re.findall(word_regex, text)) if word_regex else text


def check_word_regex(pattern: str) -> None:
    """Raise ValueError if the pattern does not compile or has more than one group."""
    try:
        groups = re.compile(pattern).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern}: it is not a valid regular expression ({error})") from None
    if groups > 1:
        raise ValueError(f"{pattern}: it has {groups} groups; keep one (...) and turn the others into (?:...)")


def read_any_encoding(path: Path) -> str:
    """Return the content of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        UserError: if it is in another encoding or cannot be read.
    """
    try:
        return _decode_file(path, MAX_BYTES)
    except _TextError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: it cannot be read ({error.strerror})") from None


def read_texts(paths: Iterable[Path]) -> dict[Path, str]:
    """Return the contents of caption files.

    Raises:
        UserError: if any cannot be read, with the number of such files and the first of each kind.
    """
    texts, failed = {}, collections.defaultdict[str, list[str]](list)  # problem -> the files that have it
    for path in paths:
        try:
            texts[path] = _decode_file(path, MAX_CAPTION)
        except _TextError as error:
            failed[error.kind].append(f"{path}: {error}")
        except OSError as error:
            failed[str(error.strerror)].append(f"{path}: it cannot be read ({error.strerror})")
    if failed:
        kinds = [
            lines[0] + (f" (like {counted(len(lines) - 1, 'other')})" if len(lines) > 1 else "")
            for lines in failed.values()
        ]
        raise UserError("; ".join(kinds))
    return texts


class _TextError(ValueError):
    """A file's bytes are not text. `kind` is the same for all files with the same problem."""

    def __init__(self, kind: str, detail: str = ""):
        super().__init__(kind + detail)
        self.kind = kind


def _decode_file(path: Path, limit: int) -> str:
    check_file(path)
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 10} KiB", str(path))
    try:
        text = decode_text(data)
    except UnicodeDecodeError as error:
        if kind := image_kind(data[:HEAD]):
            raise _TextError(f"it is not text but a {kind} image; rename or remove it") from None
        raise _TextError(f"it is not {error.encoding.upper()} text", f" (byte {error.start}){SAVE}") from None
    if "\0" in text:
        raise _TextError("it contains NUL characters, as UTF-16 text without a byte order mark does", SAVE)
    return text


def has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def caption_lines(captions: Iterable[str]) -> tuple[str, ...]:
    """Return each nonempty line of the captions as a separate caption."""
    return tuple(filter(None, (line.strip() for text in captions for line in text.split("\n")))) or ("",)


def caption_alternatives(cell: object) -> tuple[str, ...]:
    """Return the captions in a cell: a text, a list of texts, or nothing.

    Raises:
        ValueError: if it holds anything else.
    """
    texts = []
    for text in cell if isinstance(cell, list) else [cell]:
        if text is not None and not isinstance(text, str):
            raise ValueError(f"it must be text, not {type(text).__name__}")
        if text and has_surrogates(text):
            raise ValueError("it contains half of a character (an unpaired surrogate)")
        if text and len(text) > MAX_CAPTION:
            raise ValueError(f"it is longer than {MAX_CAPTION} characters")
        if text and "\0" in text:
            raise ValueError("it contains a NUL character")
        texts.append((text or "").strip())
    return tuple(texts) or ("",)
