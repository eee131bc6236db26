"""Captions from file names, by the WebUI's rules, and text files in every encoding."""

import re

import pytest

from hypernet.data.captions import (
    caption_from_name,
    check_word_regex,
    read_any_encoding,
    read_texts,
)
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "stem, caption",
    [("00012-0-a cat", "a cat"), ("03 - a dog", "- a dog"), ("portrait 2", "portrait 2"), ("17", "")],
)
def test_caption_from_file_name(stem, caption):
    assert caption_from_name(stem) == caption


def test_words_of_a_file_name():
    assert caption_from_name("12-red_cat_0042", r"[a-z]+", " ") == "red cat"
    assert caption_from_name("by [me] of a cat", r"\[(\w+)\]", ", ") == "me"


@pytest.mark.parametrize("pattern, named", [("[a-", r"\[a-"), ("a{99999999999999}", "a{9+}"), ("(a)(b)", "2 groups")])
def test_refuses_a_bad_word_regex(pattern, named):
    with pytest.raises(ValueError, match=named):
        check_word_regex(pattern)


def test_reads_text_with_a_byte_order_mark(tmp_path):
    text = "ein Haus, grün\nund 猫 🐈"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        (tmp_path / "a.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))
        assert read_any_encoding(tmp_path / "a.txt") == text
    for data in ("\ufeffgrün".encode("utf-16-be"), "\ufeffgrün".encode("utf-32-be")):
        (tmp_path / "a.txt").write_bytes(data)
        assert read_any_encoding(tmp_path / "a.txt") == "grün"


def test_counts_texts_that_cannot_be_read(tmp_path):
    contents = {"a": "gr\u00fcn".encode("latin-1"), "b": "a cat".encode("utf-16-le"), "c": b"a cat"}
    contents |= {"d": "a dog".encode("utf-32-be"), "e": b"a \0 b", "f": b"\xff\xfea cat", "g": b"\xe4"}
    paths = [tmp_path / f"{name}.txt" for name in contents]
    for path, data in zip(paths, contents.values()):
        path.write_bytes(data)
    assert read_texts(paths[2:3]) == {paths[2]: "a cat"}
    with pytest.raises(UserError) as error:
        read_texts(paths)
    encoding, nul, damaged = re.split("; (?=/)", str(error.value))
    assert encoding.startswith(f"{paths[0]}: ") and "UTF-8 text (byte 2)" in encoding and "1 other)" in encoding
    assert nul.startswith(f"{paths[1]}: ") and "NUL" in nul and "2 others" in nul
    assert damaged.startswith(f"{paths[5]}: ") and "UTF-16" in damaged and "others" not in damaged
    paths[2].write_bytes(b"a" * 100_000)
    with pytest.raises(UserError, match=f"^{paths[2]}: .*larger than"):
        read_texts(paths[2:3])
    with pytest.raises(UserError, match=f"^{paths[1]}: .*NUL"):
        read_any_encoding(paths[1])
