"""Files that a user names are read only if their type, size and content are as expected."""

import os

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from hypernet.utils.reading import MAX_HEADER, open_safetensors, read_json_object, read_text


def test_reads_json_objects(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('\ufeff{"a": [1]}', encoding="utf-8")
    assert read_json_object(path) == {"a": [1]}
    for content in (b"[]", b"null", b"", b"{", b'{"a":' * 100_000, b"\xff{}", b'{"a": ' + b"9" * 10_000 + b"}"):
        path.write_bytes(content)
        with pytest.raises(ValueError):
            read_json_object(path)


@pytest.mark.parametrize("read", [read_text, read_json_object, open_safetensors])
def test_opens_no_pipe_and_no_device(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", "/dev/zero"):
        with pytest.raises(OSError):
            read(path)


def test_reads_no_text_beyond_the_limit(tmp_path):
    (tmp_path / "a.txt").write_text("12345")
    assert read_text(tmp_path / "a.txt", 5) == "12345"
    with pytest.raises(OSError):
        read_text(tmp_path / "a.txt", 4)


def test_opens_safetensors_with_headers_of_a_usual_size(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with open_safetensors(path) as file:
        assert list(file.keys()) == ["x"]
    with open(path, "wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER * 2)
    with pytest.raises(OSError):
        open_safetensors(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(SafetensorError):
        open_safetensors(path)
