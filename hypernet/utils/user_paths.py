"""File names and paths as users write them: what no file system or program takes, and `~` for the home folder."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 255  # of a file name, in most file systems
LONGEST_FILE_NAME = ".{}_peft.safetensors.tmp"  # what is written for a name: NAME.pt, NAME.pt.optim, a LoRA of it
FORBIDDEN = '<>:"/\\|?*'  # Windows
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"}
RESERVED |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}


def name_problem(name: str) -> str | None:
    """Return why a hypernetwork of this name could not be saved or used everywhere; None if it can."""
    if not name.strip(". "):
        return "it cannot be a file name"
    if set(name) & set(FORBIDDEN):
        return f"it becomes a file name; it must not contain {' '.join(FORBIDDEN)}"
    if any(unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") for letter in name):
        return "it becomes a file name; it must not contain line breaks or other control characters"
    most = MAX_BYTES - len(LONGEST_FILE_NAME.format(""))
    if (length := len(name.encode())) > most:
        return f"it becomes a file name, and has {length} bytes; {most} are possible"
    if name[-1] in ". ":
        return "it becomes a file name; on Windows it must not end with a dot or a space"
    if name.partition(".")[0].rstrip().lower() in RESERVED:
        return "Windows reserves this name"
    if name == "None":
        return "the WebUI reads None as no hypernetwork and does not list it"
    return None


def path_problem(path: str) -> str | None:
    """Return why no file system takes this path; None if it can exist."""
    if "\0" in path:
        return "it contains a NUL character"
    try:
        longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    except UnicodeEncodeError:
        return "it contains half of a character (an unpaired surrogate)"
    return f"a part of it has {longest} bytes; file names have at most {MAX_BYTES}" if longest > MAX_BYTES else None


def expand_home(words: Iterable[str]) -> list[str]:
    """Replace `~` by the home folder in words of a command line, also behind "--option=", where shells leave it."""
    return [re.sub(r"^(--\w[\w-]*=)?(~[\w.-]*(?:[/\\].*)?)$", _expand, word, flags=re.DOTALL) for word in words]


def _expand(match: re.Match[str]) -> str:
    user_and_path = match[2]
    is_path = user_and_path == "~" or "/" in user_and_path or "\\" in user_and_path
    return (match[1] or "") + (os.path.expanduser(user_and_path) if is_path else user_and_path)
