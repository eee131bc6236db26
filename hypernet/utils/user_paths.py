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
QUOTES = {'"': '"', "'": "'", "\u201c": "\u201d", "\u201e": "\u201c", "\u2018": "\u2019", "\u00ab": "\u00bb"}
VARIABLE = re.compile(r"\$\w+|\$\{\w+\}|%\w+%")
# Of a file, or on the web; for a page of the Hub with the id of its repository
ADDRESS = re.compile(r"(\w{2,}):/+(?:(?:huggingface\.co|hf\.co)/(?:datasets/)?([\w.-]+/[\w.-]+))?")
DRIVE = re.compile(r"[A-Za-z]:(?=[/\\]|$)")  # of Windows
GOOGLE_DRIVE = "/content/drive"  # where notebooks on Colab mount it


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
    """Return why a path cannot exist, or was written for something other than this machine; None if it is plausible."""
    if "\0" in path:
        return "it contains a NUL character"
    try:
        longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    except UnicodeEncodeError:
        return "it contains half of a character (an unpaired surrogate)"
    if longest > MAX_BYTES:
        return f"a part of it has {longest} bytes; file names have at most {MAX_BYTES}"
    parts = path.split("/")
    if "/".join(parts[:3]) == GOOGLE_DRIVE and not os.path.ismount(GOOGLE_DRIVE):
        return "Google Drive is not mounted; first run: from google.colab import drive; drive.mount('/content/drive')"
    return None if os.path.lexists(path) else _foreign_problem(path)


def _foreign_problem(path: str, on_windows: bool = os.name == "nt") -> str | None:
    """Return why a path that does not exist is probably a mistake, or None."""
    if len(path) > 1 and QUOTES.get(path[0]) == path[-1]:
        return f"the quotes are part of it; write {path[1:-1]} in straight double quotes, or without any"
    if match := ADDRESS.match(path):
        here = path[match.end() - 1 :] if match[1] == "file" else match[2]
        return f"it is an address, not a path; write {here or 'a path of this machine'}"
    if variable := next(filter(VARIABLE.fullmatch, re.split(r"[/\\]", path)), None):
        return f"{variable} is not expanded here; write its value"
    if on_windows:
        is_ours = not path.startswith("/") or path.startswith("//") or os.path.exists("/".join(path.split("/")[:2]))
        return None if is_ours else "it is not a Windows path; write one such as C:/Users/me/x"
    if drive := DRIVE.match(path):
        mounted = f"/mnt/{path[0].lower()}"  # by WSL
        here = mounted + path[drive.end() :].replace("\\", "/") if os.path.isdir(mounted) else "a path of this machine"
        return f"it is a Windows path, but this is not Windows; write {here}"
    if "\\" in path:
        here = path.replace("\\ ", " ").replace("\\", "/")
        return f"only Windows separates folders with a backslash; write {here}"
    return None


def expand_home(words: Iterable[str]) -> list[str]:
    """Replace `~` with the home folder in words of a command line, also after "--option=", where shells leave it."""
    return [re.sub(r"^(--\w[\w-]*=)?(~[\w.-]*(?:[/\\].*)?)$", _expand, word, flags=re.DOTALL) for word in words]


def _expand(match: re.Match[str]) -> str:
    user_and_path = match[2]
    is_path = user_and_path == "~" or "/" in user_and_path or "\\" in user_and_path
    return (match[1] or "") + (os.path.expanduser(user_and_path) if is_path else user_and_path)
