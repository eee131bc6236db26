"""Tell readable files from everything else without opening them."""

import os
import socket

import pytest

from hypernet.utils.file_kinds import check_file, file_problem, image_kind, other_kind
from tests.helpers.image_files import HEADS


@pytest.mark.parametrize("kind", HEADS)
def test_recognizes_images_by_their_first_bytes(kind):
    assert image_kind(HEADS[kind]) == kind and image_kind(b"x" + HEADS[kind]) is None


@pytest.mark.parametrize("head", [b"", b"a cat", b"BM is text", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x14ftypisom\0\0\0\0mp42"])
def test_other_files_are_no_images(head):
    assert image_kind(head) is None and (other_kind(head) == "a video") == (b"ftyp" in head)


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
