"""Check the file names and paths that users write, and expand `~` to the home folder."""

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

MAX_BYTES = 255  # of a file name, in most file systems
LONGEST_FILE_NAME = ".{}_peft.safetensors.tmp"  # of the files written for a name: NAME.pt, NAME.pt.optim, its LoRA
FORBIDDEN = '<>:"/\\|?*'  # Windows
UNSHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode categories: control, format, half characters, line separators
# Joins the parts of an emoji, or shapes letters of Persian and Indic scripts
JOINER = re.compile(r"(?<=[^\x00-\x7f\u200b-\u200f])[\u200c\u200d](?=[^\x00-\x7f\u200b-\u200f])")
# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
RESERVED = {"con", "prn", "aux", "nul", "conin$", "conout$"}
RESERVED |= {f"{port}{digit}" for port in ("com", "lpt") for digit in "0123456789¹²³"}


def name_problem(name: str) -> str | None:
    """Return why a hypernetwork of this name could not be saved or used everywhere; None if it can."""
    if not name.strip(". "):
        return "it cannot be a file name"
    if set(name) & set(FORBIDDEN):
        return f"names are used in file names, which must not contain {' '.join(FORBIDDEN)}"
    if any(unicodedata.category(letter) in UNSHOWN for letter in JOINER.sub("", name)):
        return "names are used in file names, which must not contain line breaks or other invisible characters"
    most = MAX_BYTES - len(LONGEST_FILE_NAME.format(""))
    if (length := len(name.encode())) > most:
        return f"the name has {length} bytes; file names leave room for {most}"
    if name[-1] == "." or name[-1].isspace():
        return "names are used in file names, which must not end with a dot or a space on Windows"
    if name.partition(".")[0].rstrip().lower() in RESERVED:
        return "Windows reserves this name"
    if name == "None":
        return "the WebUI reads None as no hypernetwork and does not list it"
    return None


def path_problem(path: str) -> str | None:
    """Return why no file system accepts this path; None if it can exist."""
    if "\0" in path:
        return "it contains a NUL character"
    try:
        longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    except UnicodeEncodeError:
        return "it contains half of a character (an unpaired surrogate)"
    return f"a part of it has {longest} bytes; file names have at most {MAX_BYTES}" if longest > MAX_BYTES else None


def expand_home(words: Iterable[str]) -> list[str]:
    """Replace `~` with the home folder in words of a command line, also after "--option=", where shells leave it."""
    return [re.sub(r"^(--\w[\w-]*=)?(~[\w.-]*(?:[/\\].*)?)$", _expand, word, flags=re.DOTALL) for word in words]


def _expand(match: re.Match[str]) -> str:
    user_and_path = match[2]
    is_path = user_and_path == "~" or "/" in user_and_path or "\\" in user_and_path
    return (match[1] or "") + (os.path.expanduser(user_and_path) if is_path else user_and_path)
