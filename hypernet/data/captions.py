"""Captions from text files, file names and cells of a table."""

import codecs
import collections
import errno
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from hypernet.utils.errors import UserError, counted
from hypernet.utils.file_kinds import check_file

MAX_CAPTION = 2**16  # bytes or characters; longer text is not a caption, and takes a tokenizer seconds
MAX_BYTES = 2**26  # of other text files, such as the metadata of 100,000 images
SAVE = "; save it as UTF-8"
BYTE_ORDER_MARKS = (  # UTF-32 first, since its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)

# Words in the file names that cameras, phones, image generators and other programs choose, and in those of copies
NAMELESS = set(
    "img image images imgp dsc dscn dscf dcim pxl mvimg burst photo photos foto pic picture pictures gopr screenshot "
    "bildschirmfoto whatsapp wa telegram scan scanned download downloaded untitled unnamed unknown file copy of final "
    "version ver edit edited export output outputs result tmp temp at am pm and the "
    "comfyui comfy sd sdxl flux txt img2img invokeai fooocus dalle chatgpt gemini generated grid xyz seed sample "
    "jan feb mar apr may jun jul aug sep sept oct nov dec".split()
)


def caption_from_name(stem: str, word_regex: str | None = None, join_string: str = " ") -> str:
    """Turn a file name without its extension into a caption: "03-a cat" becomes "a cat".

    As in the WebUI, leading digits and dashes, and spaces after them, are dropped. With `word_regex`, the caption is
    its matches (those of its group, if it has one), joined by `join_string`.
    """
    text = re.sub(r"^[-\d]+\s*", "", stem)
    return join_string.join(re.findall(word_regex, text)) if word_regex else text


def has_words(caption: str) -> bool:
    """Return whether a caption from a file name has descriptive words; IMG_2034, final_v2 and 3f9a8c have none."""
    if not caption.isascii():
        return True
    plain = re.sub(r"^comfyui_temp_[a-z]{5}_|^gemini_generated_image_\w*", "", caption.lower())  # random letters
    words = re.findall(r"(?<![a-z0-9])([a-z]{2,})\d*(?![a-z0-9])", plain)
    return any(word not in NAMELESS for word in words)


def caption_notes(captions: Sequence[str], captioned: Sequence[bool]) -> list[str]:
    """Return notes if file names serve as captions although other images have written ones, or have no words.

    Args:
        captioned: whether each caption is a written one, not a file name.
    """
    # an empty one is an empty caption, which has a note of its own
    names, notes = [caption for caption, written in zip(captions, captioned) if caption and not written], []
    if names and any(captioned):
        which = f"images without a caption: {len(names)} of {len(captions)}"
        notes.append(f'{which}; a file name serves as the caption, such as "{names[0]}"')
    wordless = [name for name in names if not has_words(name)]
    if wordless:
        hint = (
            "write captions as NAME.txt, as examples/prepare.py --caption does, or use a template without [filewords]"
        )
        notes.append(f'captions that are file names without words: {len(wordless)}, such as "{wordless[0]}"; {hint}')
    return notes


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
    if path.stat().st_size > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 10} KiB", str(path))
    data = path.read_bytes()
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "UTF-8")
    try:
        text = data.decode("utf-8-sig" if encoding == "UTF-8" else encoding)
    except UnicodeDecodeError as error:
        raise _TextError(f"it is not {encoding} text", f" (byte {error.start}){SAVE}") from None
    if "\0" in text:
        raise _TextError("it contains NUL characters, as UTF-16 text without a byte order mark does", SAVE)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def has_surrogates(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)


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
