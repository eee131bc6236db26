"""The sha256 of files, by which they are told apart."""

import hashlib


def file_sha256(path) -> str:
    """Its hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()
