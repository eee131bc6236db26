"""Read files that a user names: only regular files of a plausible size, with the expected content.

Errors are an OSError, with the reason as its `strerror`, or a ValueError, with the reason as its message. Imports no
torch.
"""

import codecs
import errno
import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hypernet.utils.file_kinds import check_file

MAX_TEXT = 2**24  # bytes; a vocabulary has 1 MB, a long config 10 kB
MAX_HEADER = 2**24  # bytes of a .safetensors header; that of SDXL's single file has 0.4 MB
BYTE_ORDER_MARKS = (  # UTF-32 first, since its little-endian mark begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)


def decode_text(data: bytes) -> str:
    """Return text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark, as Windows writes it; lines end with \\n.

    Raises:
        UnicodeDecodeError: if it is in another encoding.
    """
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "UTF-8-SIG")
    return data.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_text(path: str | Path, limit: int = MAX_TEXT) -> str:
    """Return the content of a text file in an encoding that `decode_text` reads.

    Raises:
        OSError: if it cannot be read, is not a regular file, or has more than `limit` bytes.
        UnicodeDecodeError: if it is in another encoding.
    """
    check_file(path)
    if os.path.getsize(path) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit >> 10} KiB", str(path))
    return decode_text(Path(path).read_bytes())


def read_json_object(path: str | Path) -> dict[str, Any]:
    """Return the content of a JSON file that holds an object.

    Raises:
        OSError: as `read_text` does.
        ValueError: if it is not JSON, or holds something else.
    """
    return parse_json_object(read_text(path))


def parse_json_object(text: str) -> dict[str, Any]:
    """Return a JSON object; raise ValueError if the text is not JSON, or is something else."""
    try:
        content = json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(content, dict):
        raise ValueError("it holds no JSON object {...}")
    return content


def open_safetensors(path: str | Path) -> Any:
    """Return `safetensors.safe_open` of a file, for use in a `with` statement.

    Raises:
        OSError: if it cannot be read, is not a regular file, or has a header that takes too long to read.
        SafetensorError: if it is damaged.
    """
    check_file(path)
    with open(path, "rb") as file:
        if MAX_HEADER < int.from_bytes(file.read(8), "little") < os.path.getsize(path):  # a larger one is damage
            raise OSError(errno.EFBIG, f"its header is larger than {MAX_HEADER >> 20} MiB", str(path))
    return safe_open(path, framework="pt")
