"""Hashes, manifests and seeds. Checkpoints and caches rely on these exact values."""

import hashlib
import json

from hypernet.utils.hashing import derive_seed, file_sha256, find_damage, write_manifest


def test_file_sha256_reads_the_whole_file(tmp_path):
    content = bytes(range(256)) * 2**13  # two blocks
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_find_damage_names_the_file(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a.bin", "sub/b.bin"):
        (tmp_path / name).write_bytes(name.encode())
    assert "manifest.json" in find_damage(tmp_path)
    write_manifest(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.bin", "sub/b.bin")}
    assert find_damage(tmp_path) is None
    (tmp_path / "sub" / "b.bin").write_bytes(b"x")
    assert "sub/b.bin" in find_damage(tmp_path)
    (tmp_path / "a.bin").unlink()
    assert "a.bin" in find_damage(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json" in find_damage(tmp_path)


def test_derive_seed():
    digest = hashlib.sha256(b"3/item/0/abc").hexdigest()
    assert derive_seed(3, "item", 0, "abc") == int(digest[:16], 16) // 2 < 2**63
