"""What a folder should hold, by sha256: how a folder that a crash has torn is recognised."""

import json
from pathlib import Path

from hypernet.utils.hashing import file_sha256

MANIFEST = "manifest.json"


def write_manifest(folder: Path):
    """Note every file below the folder."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with the folder; None if it is as it was written."""
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"its {MANIFEST} is missing or damaged"
    for name, digest in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} is damaged"
    return None
