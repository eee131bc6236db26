"""Captions from file names, by the WebUI's rules. Those from text and metadata files are in test_image_folder.py."""

import pytest

from hypernet.data.captions import caption_from_name, check_word_regex


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
