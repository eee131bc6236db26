"""Seeds of their own for everything that is drawn, so that no draw depends on what was drawn before it."""

import hashlib


def derive_seed(*parts) -> int:
    """A seed for whatever `parts` name: the first 63 bits of sha256("part/part/...")."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
