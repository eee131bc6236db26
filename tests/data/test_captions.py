"""Captions from file names, by the WebUI's rules, and text files in every encoding."""

import re

import pytest

from hypernet.data.captions import (
    caption_from_name,
    caption_notes,
    check_word_regex,
    has_words,
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


def test_recognizes_file_names_without_words():
    cameras = [
        "IMG_2034",
        "DSC00012",
        "_101112",
        "PXL_20230506_101112345",
        "IMG-20230506-WA0001",
        "DSCF1234",
        "P1010001",
    ]
    programs = ["Screenshot 2024-01-03 at 10.11.12", "WhatsApp Image 2023-05-06", "final_FINAL_v2 (1)", "download (3)"]
    hashes = ["3f9a8cde1e", "a3", "v2", "d41d8cd98f00b204e9800998ecf8427e"]
    generators = ["ComfyUI_00012_", "ComfyUI_temp_qwert_00001_", "00012-1234567890", "xyz_grid-0001-77", "txt2img_3"]
    generators += ["ChatGPT Image Apr 1, 2025, 10_20_30 AM", "Gemini_Generated_Image_k3xab2kx"]
    assert not any(map(has_words, cameras + programs + generators + hashes))
    words = [
        "a cat",
        "red_cat_0042",
        "cat01",
        "burrito_bw",
        "IMG_2034 a red cat",
        "ox",
        "чайка",
        "猫",
        "the photo of a cat",
    ]
    assert all(map(has_words, words))


def test_notes_on_captions_from_file_names():
    assert caption_notes(["a cat", "a dog"], [False, False]) == caption_notes(["IMG_1", "x"], [True, True]) == []
    (mixed,) = caption_notes(["by hand", "a dog", "a cow"], [True, False, False])
    assert "2 of 3" in mixed and '"a dog"' in mixed
    mixed, wordless = caption_notes(["by hand", "a dog", "IMG_1", "IMG_2"], [True, False, False, False])
    assert "3 of 4" in mixed and "2," in wordless and '"IMG_1"' in wordless
    (mixed,) = caption_notes(["by hand", "", "a dog"], [True, False, False])
    assert "1 of 3" in mixed and '"a dog"' in mixed
    assert caption_notes(["by hand", ""], [True, False]) == []  # an empty caption has its own note


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
