"""Templates, tags and prompts by the documented rules."""

import random

import pytest

from hypernet.data.prompts import (
    PromptSampler,
    fill_name,
    fill_template,
    read_templates,
    sample_tags,
    shipped_templates,
    split_tags,
    template_notes,
    unknown_placeholders,
    with_template_words,
)
from hypernet.utils.errors import UserError


def test_templates(tmp_path):
    assert read_templates("art by [name]") == ["art by [name]"]
    assert read_templates("a cat") == ["a cat"] and read_templates("[game] cat") == ["[game] cat"]
    assert read_templates("a long prompt " * 100) == ["a long prompt " * 100]
    file = tmp_path / "style.txt"
    file.write_text("a [filewords]\n\nart by [name], [filewords]\n")
    assert read_templates(str(file)) == ["a [filewords]", "art by [name], [filewords]"]
    file.write_text("just this\n")
    assert read_templates(str(file)) == ["just this"]
    (tmp_path / "lines").write_text("x [name]")
    assert read_templates(str(tmp_path / "lines")) == ["x [name]"]
    assert fill_template("art by [name], [filewords]", "a [name] cat", "me") == "art by me, a me cat"


def test_shipped_templates_have_names_as_in_the_webui(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read_templates("style_filewords.txt") == read_templates("style_filewords")
    (tmp_path / "style_filewords.txt").write_text("my own [filewords]")
    assert read_templates("style_filewords.txt") == ["my own [filewords]"]


def test_refuses_unreadable_template_files(tmp_path):
    file = tmp_path / "style.txt"
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"style\.txt"):
        read_templates(str(file))
    file.write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"style\.txt: .*UTF-8"):
        read_templates(str(file))
    with pytest.raises(ValueError, match=r"none\.txt"):
        read_templates(str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    "template",
    ["style_fileword", "templates/style", "", " ", "my templates/a.txt", "a b.txt", "~/my pics/t", "C:\\Max M\\t.TXT"],
)
def test_refuses_misspelled_template_names(template):
    with pytest.raises(ValueError, match="hypernetwork, none, style, ") as error:
        read_templates(template)
    assert str(error.value).startswith(template.strip() or '""')


@pytest.mark.parametrize(
    "template, unknown",
    [
        ("a [filename]", ["[filename]"]),
        ("{caption} by {name}", ["{caption}", "{name}"]),
        ("[filewords", ["[filewords"]),
        ("a filewords] cat", ["filewords]"]),
        ("a [ filewords ]", ["[ filewords ]"]),
        ("a (filewords) <filewords>", ["(filewords)", "<filewords>"]),
        ("[filewords] by [name], [a|b], my name, a text", []),
    ],
)
def test_unknown_placeholders_get_one_note(template, unknown):
    assert unknown_placeholders(template) == unknown
    notes = template_notes(template, [("a cat",)] * 3)
    assert len(notes) == bool(unknown) and all(word in note for word in unknown for note in notes)


def test_emphasis_brackets_are_not_placeholders():
    assert unknown_placeholders("[dark] [caption]") == ["[dark]", "[caption]"]
    assert unknown_placeholders("[dark] [caption]", brackets_weigh=True) == ["[caption]"]


def test_a_template_without_captions_gets_a_note_if_they_differ(tmp_path):
    captions = [("a cat",), ("a dog",), ("a cat",)]
    (note,) = template_notes("a photo by [name]", captions)
    assert "[filewords]" in note and "2 " in note
    assert template_notes("a photo by [name]", captions[::2]) == template_notes("[filewords], x", captions) == []
    (tmp_path / "lines").write_text("a [name]\na [filewords]\n")
    assert template_notes(str(tmp_path / "lines"), captions) == []


@pytest.mark.parametrize(
    "templates, prompt, expected",
    [
        (["[filewords]"], "a cat", "a cat"),
        (["[filewords], by [name]"], "a cat", "a cat, by ink"),
        (["[filewords], by [name]"], "a cat, by ink", "a cat, by ink"),
        (["by [name]"], "a cat", "a cat, by ink"),
        (["by [name]", "art of [filewords], by [name]"], "a cat", "art of a cat, by ink"),
        (["by [name]", "[filewords]"], "a cat", "a cat"),
    ],
)
def test_prompts_get_the_words_of_the_template(templates, prompt, expected):
    assert with_template_words(templates, prompt, "ink") == expected


def test_shipped_templates_have_what_their_names_say():
    names = {"hypernetwork", "none", "style", "style_filewords", "subject", "subject_filewords"}
    assert set(shipped_templates()) == names
    for name in names:
        for line in read_templates(name):
            assert ("[filewords]" in line) == ("filewords" in name or name == "hypernetwork"), (name, line)
            assert ("[name]" in line) == ("style" in name or "subject" in name), (name, line)


def test_sample_tags():
    caption, rng = "a cat, red ,blue,, green", random.Random(0)
    assert sample_tags(caption, rng, shuffle=False, keep=0, dropout=0) == "a cat, red, blue, green"
    assert sample_tags(caption, rng, shuffle=False, keep=0, dropout=1) == ""
    assert sample_tags(caption, rng, shuffle=True, keep=2, dropout=1) == "a cat, red"
    shuffled = [sample_tags(caption, rng, shuffle=True, keep=1, dropout=0).split(", ") for _ in range(600)]
    assert all(tags[0] == "a cat" and sorted(tags[1:]) == ["blue", "green", "red"] for tags in shuffled)
    orders = {tuple(tags[1:]) for tags in shuffled}
    assert len(orders) == 6 and all(70 < sum(tuple(t[1:]) == order for t in shuffled) < 130 for order in orders)
    kept = sum(len(sample_tags("a,b,c,d", rng, False, 0, 0.3).split(", ")) for _ in range(1000))
    assert 2700 < kept < 2900


@pytest.mark.parametrize(
    "caption, separator, tags, joined",
    [
        ("a cat, red ,blue,, ink", ",", ["a cat", "red", "blue", "ink"], ", "),
        ("1girl  long_hair\tsolo,smile\n", " ", ["1girl", "long_hair", "solo,smile"], " "),
        ("red; big, round ;", ";", ["red", "big, round"], "; "),
        ("red;big", "; ", ["red", "big"], "; "),
        ("a cat | red|", " | ", ["a cat", "red"], " | "),
        ("a cat\nred, big\n", "\n", ["a cat", "red, big"], "\n"),
        ("a cat ||| red, big", "|||", ["a cat", "red, big"], "||| "),
    ],
)
def test_tags_between_other_separators(caption, separator, tags, joined):
    assert split_tags(caption, separator) == tags
    rng = random.Random(0)
    assert sample_tags(caption, rng, False, 0, 0, separator) == joined.join(tags)
    orders = {sample_tags(caption, rng, True, 1, 0, separator) for _ in range(50)}
    assert all(text.startswith(tags[0] + joined) and sorted(text.split(joined)) == sorted(tags) for text in orders)


def test_prompts_have_the_tag_separator():
    prompts = PromptSampler(["x"], [("a b c",)], ["[filewords]"], "me", seed=4, tag_dropout=0.5, tag_separator=" ")
    assert {prompts.sample(epoch, 0) for epoch in range(200)} == {"", "a", "b", "c", "a b", "a c", "b c", "a b c"}


def test_prompts_change_with_epoch_and_seed_and_are_reproducible():
    captions, templates = [("a, b, c",), ("d",)], ["[filewords]", "x [filewords]"]
    prompts = PromptSampler(["x", "y"], captions, templates, "me", seed=4, shuffle_tags=True)
    sampled = [prompts.sample(epoch, 0) for epoch in range(200)]
    assert len(set(sampled)) == 12 and sampled == [prompts.sample(epoch, 0) for epoch in range(200)]
    assert prompts.all_prompts() is None
    moved = PromptSampler(["y", "x"], captions[::-1], templates, "me", seed=4, shuffle_tags=True)
    assert [moved.sample(epoch, 1) for epoch in range(200)] == sampled  # the image counts, not its position
    other = PromptSampler(["x", "y"], captions, templates, "me", seed=5, shuffle_tags=True)
    assert [other.sample(epoch, 0) for epoch in range(200)] != sampled


def test_variants_limit_the_number_of_prompts():
    captions = [("a, b, c, d, e, f",)]
    prompts = PromptSampler(["x"], captions, ["[filewords]"], "me", seed=4, shuffle_tags=True, variants=3)
    assert {prompts.sample(epoch, 0) for epoch in range(200)} == set(prompts.all_prompts())
    assert len(prompts.all_prompts()) == 3


def test_all_prompts_are_exactly_those_sampled():
    templates = ["[filewords]", "x [filewords] [name]"]
    prompts = PromptSampler(["x", "y"], [("a", "b"), ("c",)], templates, "me", seed=4, caption_dropout=0.25)
    sampled = [prompts.sample(epoch, index) for epoch in range(400) for index in (0, 1)]
    assert prompts.all_prompts() == ["", "a", "b", "c", "x a me", "x b me", "x c me"] == sorted(set(sampled))
    assert 150 < sampled.count("") < 250


def test_images_may_have_templates_of_their_own():
    own = [["[filewords]", "x [filewords]"], ["by [name]"]]
    prompts = PromptSampler(["x", "y"], [("a", "b"), ("c",)], sum(own, []), "me", seed=4, image_templates=own)
    sampled = [{prompts.sample(epoch, index) for epoch in range(100)} for index in (0, 1)]
    assert sampled == [{"a", "b", "x a", "x b"}, {"by me"}] == [set(prompts.full_prompts(index)) for index in (0, 1)]
    assert prompts.all_prompts() == ["a", "b", "by me", "x a", "x b"]


@pytest.mark.parametrize("template", ["by [Folder]", "by [folders]"])
def test_a_misspelled_folder_is_refused(template):
    with pytest.raises(ValueError, match=r"\[folder\]"):
        read_templates(template)
    assert read_templates("an [older] man, [bolder] in [folder]") and not unknown_placeholders("in [folder]")


def test_the_name_is_filled_in_prompts_of_previews():
    assert fill_name(["a cat by [name]", "a dog, [filewords]"], "ink") == ["a cat by ink", "a dog, [filewords]"]
    assert fill_name(None, "ink") is None
