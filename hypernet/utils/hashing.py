"""The sha256 of files, by which they are told apart."""

import hashlib
import json
from pathlib import Path

MANIFEST = "manifest.json"

def file_sha256(path) -> str:
    """Its hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path):
    """Note every file below the folder."""
    files = {str(path.relative_to(folder)): file_sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def find_damage(folder: Path) -> str | None:
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


def derive_seed(*parts) -> int:
    """A seed for whatever `parts` name: the first 63 bits of sha256("part/part/...")."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
