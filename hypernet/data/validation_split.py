"""Which images were made of one picture, as examples/prepare.py writes it down beside them."""

import json
from pathlib import Path

RECORD = "prepare.jsonl"  # a line for each picture, with its name as "source" and what was made of it as "files"


def find_origins(paths: list[str]) -> dict[str, tuple[Path, str]]:
    """Image -> the record that names it, and the picture there that it is a part or a mirrored copy of.

    The record is the nearest one in the folders above an image. Images that it does not name are left out.
    """
    records, origins = {}, {}
    for path in paths:
        absolute = Path(path).absolute()
        record = _nearest(absolute.parent, records)
        if absolute in record:
            origins[path] = record[absolute]
    return origins


def _nearest(folder: Path, records: dict) -> dict:
    """What the record in this folder says, or else that of the folder above; `records` keeps what was found."""
    if folder not in records:
        if (folder / RECORD).is_file():
            records[folder] = _read(folder / RECORD)
        else:
            records[folder] = {} if folder == folder.parent else _nearest(folder.parent, records)
    return records[folder]


def _read(path: Path) -> dict[Path, tuple[Path, str]]:
    """Of each image its picture; lines that are damaged tell nothing."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return {}
    entries = [entry for entry in map(_parse, lines) if isinstance(entry, dict)]
    made = [(entry.get("source"), entry.get("files")) for entry in entries]
    made = [(source, files) for source, files in made if isinstance(source, str) and isinstance(files, list)]
    return {path.parent / str(file): (path, source) for source, files in made for file in files}


def _parse(line: bytes):
    try:
        return json.loads(line)
    except ValueError:
        return None
