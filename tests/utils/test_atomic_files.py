"""Atomic writes: the complete new file or folder, or the old one."""

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from hypernet.utils.atomic_files import atomic_write, check_writable, is_unfinished, remove, remove_unfinished


def test_files_and_folders_are_replaced(tmp_path):
    for text in ("old", "new"):
        with atomic_write(tmp_path / "sub" / "file.txt") as temporary:
            assert is_unfinished(temporary) and temporary.parent == tmp_path / "sub"
            temporary.write_text(text)
        with atomic_write(str(tmp_path / "folder")) as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
        assert (tmp_path / "sub" / "file.txt").read_text() == text
        assert [(path.name, path.read_text()) for path in (tmp_path / "folder").iterdir()] == [(text, text)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "sub"]


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_permissions_are_those_of_a_plain_file(tmp_path):
    """safetensors creates files that only their owner may read."""
    (tmp_path / "plain").touch()
    with atomic_write(tmp_path / "weights.safetensors") as temporary:
        save_file({"weight": torch.zeros(1)}, temporary)
    plain, written = (stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "weights.safetensors"))
    os.umask(umask := os.umask(0o022))
    assert plain == written == 0o666 & ~umask


def test_remove_unfinished(tmp_path):
    (tmp_path / ".step-1.tmp").mkdir()
    (tmp_path / ".step-1.tmp" / "weights").touch()
    for name in (".file.txt.tmp", ".hidden", "file.tmp"):
        (tmp_path / name).touch()
    remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "file.tmp"]
    remove(tmp_path / "missing")


def test_check_writable(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list(tmp_path.rglob("*")) == [tmp_path / "a", tmp_path / "a" / "b"]
    Path(tmp_path, "file").touch()
    with pytest.raises(OSError):
        check_writable(tmp_path / "file")
