"""Tell readable files from everything else without opening them."""

import os
import socket

import pytest

from hypernet.utils.file_kinds import check_file, file_problem


def test_tells_files_from_everything_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the path of a socket is short
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo("pipe")
    bound = socket.socket(socket.AF_UNIX)
    bound.bind("socket")
    kinds = {"folder": "folder", "pipe": "pipe", "socket": "socket", "none": "no such file", "file/x": "no such file"}
    kinds |= {"/dev/zero": "device", "loop": "cannot be read", "a\0b": "name", "x" * 5000: "cannot be read"}
    for path in ("file", "link"):
        assert file_problem(path) is None and check_file(path) is None
    for path, word in kinds.items():
        assert word in file_problem(path), path
        with pytest.raises(OSError) as error:
            check_file(path)
        assert error.value.strerror == file_problem(path)
    bound.close()
