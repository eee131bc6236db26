"""SHA-256 of files, manifests of folders, and seeds derived from names."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from hypernet.utils.reading import read_json_object

MANIFEST = "manifest.json"


def file_sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def write_manifest(folder: Path) -> None:
    """Write a manifest into the folder: the SHA-256 of every file in it and below."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1), encoding="utf-8")


def find_damage(
    folder: Path, needed: Callable[[str], bool] = lambda name: True, required: Iterable[str] = ()
) -> str | None:
    """Return what is wrong with the folder, or None if its files match its manifest.

    Args:
        needed: whether the file at a path within the folder must be intact; by default, all must be.
        required: files that the manifest must list.
    """
    try:
        files = read_json_object(folder / MANIFEST)
    except (OSError, ValueError):
        files = None
    if files is None or not files.keys() >= set(required):
        return f"its {MANIFEST} is missing or damaged"
    for name, digest in files.items():
        path = folder / name
        if not needed(name):
            continue
        if not path.is_file():
            return f"{name} is missing"
        if file_sha256(path) != digest:
            return f"{name} is damaged"
    return None


def derive_seed(*parts: object) -> int:
    """Return a seed for `parts`: the first 63 bits of SHA-256("part/part/...").

    Equal parts give the same seed in any run and on any machine, so random numbers need not be saved.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
