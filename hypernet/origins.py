"""Which images of a folder were made of one picture, as examples/prepare.py writes it down there."""

import json
from pathlib import Path

RECORD = "prepare.jsonl"  # a line for each picture, with its name as "source" and what was made of it as "files"


def find_origins(folder: str | None, names: list[str]) -> dict[int, str]:
    """For the index of each name the picture that it is a part or a mirrored copy of; none for what no record tells of.

    Args:
        folder: of the images; None if they come from elsewhere.
        names: the images' paths, below `folder`.
    """
    origins = {} if folder is None else _read_record(Path(folder))
    return {index: origins[Path(name)] for index, name in enumerate(names) if Path(name) in origins}


def _read_record(folder: Path) -> dict[Path, str]:
    """Path of an image -> name of its picture; lines that are damaged tell nothing."""
    try:
        lines = (folder / RECORD).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return {}
    entries = [entry for entry in map(_parse, lines) if isinstance(entry, dict)]
    made = [(entry.get("source"), entry.get("files")) for entry in entries]
    return {folder / name: str(source) for source, names in made if isinstance(names, list) for name in map(str, names)}


def _parse(line):
    try:
        return json.loads(line)
    except ValueError:
        return None
