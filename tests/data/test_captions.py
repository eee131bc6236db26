"""Captions, tags and templates by the rules as they are documented."""

import random

import pytest

from hypernet.data.captions import (
    PromptSampler,
    caption_from_name,
    check_word_regex,
    fill_template,
    read_templates,
    sample_tags,
    shipped_templates,
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
    with pytest.raises(ValueError, match="it is no regular expression"):
        check_word_regex("[a-")
    with pytest.raises(ValueError, match="it is no regular expression"):
        check_word_regex("a{99999999999999}")
    with pytest.raises(ValueError, match="it has 2 groups"):
        check_word_regex("(a)(b)")


def test_templates(tmp_path):
    assert read_templates("art by [name]") == ["art by [name]"]
    assert read_templates("a cat") == ["a cat"] and read_templates("[game] cat") == ["[game] cat"]
    assert read_templates("a long prompt " * 100) == ["a long prompt " * 100]
    file = tmp_path / "style.txt"
    file.write_text("a [filewords]\n\nart by [name], [filewords]\n")
    assert read_templates(str(file)) == ["a [filewords]", "art by [name], [filewords]"]
    file.write_text("just this\n")
    assert read_templates(str(file)) == ["just this"]
    file.write_text("\n")
    with pytest.raises(ValueError, match="it is empty"):
        read_templates(str(file))
    file.write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"style\.txt: it is not UTF-8"):
        read_templates(str(file))
    with pytest.raises(ValueError, match="no such file"):
        read_templates(str(tmp_path / "none.txt"))
    for slip in ("style_fileword", "templates/style", "", " "):
        with pytest.raises(ValueError, match="no such template is shipped; there are hypernetwork, none, style, "):
            read_templates(slip)
    (tmp_path / "lines").write_text("x [name]")
    assert read_templates(str(tmp_path / "lines")) == ["x [name]"]
    assert fill_template("art by [name], [filewords]", "a [name] cat", "me") == "art by me, a me cat"


def test_shipped_templates_have_what_their_names_say():
    names = {"hypernetwork", "none", "style", "style_filewords", "subject", "subject_filewords"}
    assert set(shipped_templates()) == names
    for name in names:
        for line in read_templates(name):
            assert ("[filewords]" in line) == ("filewords" in name or name == "hypernetwork"), (name, line)
            assert ("[name]" in line) == ("style" in name or "subject" in name), (name, line)


def test_tags():
    caption, rng = "a cat, red ,blue,, green", random.Random(0)
    assert sample_tags(caption, rng, shuffle=False, keep=0, dropout=0) == "a cat, red, blue, green"
    assert sample_tags(caption, rng, shuffle=False, keep=0, dropout=1) == ""
    assert sample_tags(caption, rng, shuffle=True, keep=2, dropout=1) == "a cat, red"
    drawn = [sample_tags(caption, rng, shuffle=True, keep=1, dropout=0).split(", ") for _ in range(600)]
    assert all(tags[0] == "a cat" and sorted(tags[1:]) == ["blue", "green", "red"] for tags in drawn)
    orders = {tuple(tags[1:]) for tags in drawn}
    assert len(orders) == 6 and all(70 < sum(tuple(t[1:]) == order for t in drawn) < 130 for order in orders)
    kept = sum(len(sample_tags("a,b,c,d", rng, False, 0, 0.3).split(", ")) for _ in range(1000))
    assert 2700 < kept < 2900


def test_prompts_are_drawn_anew_each_time_and_yet_always_the_same():
    prompts = PromptSampler(
        ["x", "y"], [("a, b, c",), ("d",)], ["[filewords]", "x [filewords]"], "me", seed=4, shuffle_tags=True
    )
    drawn = [prompts.sample(epoch, 0) for epoch in range(200)]
    assert len(set(drawn)) == 12 and drawn == [prompts.sample(epoch, 0) for epoch in range(200)]
    assert prompts.every_prompt() is None
    moved = PromptSampler(["y", "x"], [("d",), ("a, b, c",)], ["[filewords]", "x [filewords]"], "me", 4, shuffle_tags=True)
    assert [moved.sample(epoch, 1) for epoch in range(200)] == drawn  # it is the image that counts, not its place
    other = PromptSampler(
        ["x", "y"], [("a, b, c",), ("d",)], ["[filewords]", "x [filewords]"], "me", seed=5, shuffle_tags=True
    )
    assert [other.sample(epoch, 0) for epoch in range(200)] != drawn


def test_variants_are_as_many_as_said():
    prompts = PromptSampler(["x"], [("a, b, c, d, e, f",)], ["[filewords]"], "me", seed=4, shuffle_tags=True, variants=3)
    assert {prompts.sample(epoch, 0) for epoch in range(200)} == set(prompts.every_prompt()) and len(
        prompts.every_prompt()
    ) == 3


def test_all_prompts_are_all_that_are_drawn():
    prompts = PromptSampler(
        ["x", "y"], [("a", "b"), ("c",)], ["[filewords]", "x [filewords] [name]"], "me", seed=4, caption_dropout=0.25
    )
    drawn = [prompts.sample(epoch, index) for epoch in range(400) for index in (0, 1)]
    assert prompts.every_prompt() == ["", "a", "b", "c", "x a me", "x b me", "x c me"] == sorted(set(drawn))
    assert 150 < drawn.count("") < 250
