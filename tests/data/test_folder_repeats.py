"""How often the images of a folder count: FOLDER:N, and numbers in folder names as kohya's scripts read them."""

from pathlib import Path

import pytest

from hypernet.data.folder_repeats import (
    absolute_folders,
    check_folders,
    count_repeats,
    folder_words,
    plain_folders,
    repeats_in_name,
    split_repeats,
)
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "text, expected",
    [
        ("mine", ("mine", None)),
        ("mine:2", ("mine", 2)),
        ("mine: 12", ("mine", 12)),
        ("my images/a:3", ("my images/a", 3)),
        ("C:\\pics", ("C:\\pics", None)),
        ("C:/pics", ("C:/pics", None)),
        ("C:\\pics:2", ("C:\\pics", 2)),
        ("C:2", ("C:2", None)),  # the folder 2 on drive C
        ("named:2", ("named:2", None)),  # exists
        ("named:2:5", ("named:2", 5)),
        ("d:2", ("d", 2)),  # d exists
        ("missing:two", ("missing:two", None)),
        (":2", (":2", None)),
        ("", ("", None)),
    ],
)
def test_splits_a_folder_and_its_repeats(tmp_path, monkeypatch, text, expected):
    for name in ("named:2", "d"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert split_repeats(text) == expected


@pytest.mark.parametrize("number", ["0", "10000", "2x", "-1", "1.5", ""])
def test_refuses_repeats_that_cannot_be_meant(tmp_path, number):
    (tmp_path / "mine").mkdir()
    with pytest.raises(UserError, match=f"^--train_data_dir {tmp_path}/mine:{number}: "):
        split_repeats(f"{tmp_path}/mine:{number}")


def test_one_folder_stays_text():
    assert plain_folders([""]) is plain_folders(None) is plain_folders([]) is None
    assert plain_folders(["a"]) == plain_folders("a") == "a"
    assert plain_folders(["a", "b:2"]) == ["a", "b:2"]


def test_paths_become_absolute_with_their_repeats(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert absolute_folders("mine") == str(tmp_path / "mine")
    assert absolute_folders(["mine:2", "gone", "gone:3"]) == [f"{tmp_path / 'mine'}:2", "gone", "gone:3"]


@pytest.mark.parametrize(
    "name, repeats, words",
    [
        ("10_cat", 10, "cat"),
        ("1_my cat_girl", 1, "my cat_girl"),
        ("999_x", 999, "x"),
        ("2023_holiday", None, "2023_holiday"),
        ("01_portraits", None, "01_portraits"),
        ("0_off", None, "0_off"),
        ("10_", None, "10_"),
        ("10", None, "10"),
        ("10cats", None, "10cats"),
        ("2023-05-01_x", None, "2023-05-01_x"),
        ("cats", None, "cats"),
    ],
)
def test_reads_names_in_kohyas_form(name, repeats, words):
    assert repeats_in_name(name) == repeats and folder_words(Path("/images") / name) == words


def counts(root, given, *images):
    numbers, notes = count_repeats(Path(root), given, [Path(root, image) for image in images])
    assert all(f"--train_data_dir {root}" in note for note in notes)
    return numbers, len(notes)


def test_subfolders_named_as_in_kohya_repeat_their_images():
    numbers, notes = count_repeats(Path("img"), None, [Path("img", name) for name in ("10_a/1.png", "5_b/2.png")])
    assert numbers == [10, 5] and len(notes) == 1 and "10_a" in notes[0] and "5_b" in notes[0]
    assert counts("img", None, "10_a/deep/1.png", "b/2.png", "3.png") == ([10, 1, 1], 1)
    assert counts("img", None, "a/10_deep/1.png", "a/5_b/c/2.png") == ([1, 1], 1)  # kohya reads subfolders only
    assert counts("img", None, "a/1_deep/1.png", "a/b/10_1.png") == ([1, 1], 0)
    assert counts("img", None, "1_a/1.png", "b/2.png") == ([1, 1], 0)
    assert counts("img/10_a", None, "1.png", "b/2.png", "3_c/4.png") == ([10, 10, 3], 1)  # the folder itself is named
    assert counts("img/10_a", None, "10_a/1.png") == ([10], 1)


def test_regularization_images_of_kohya_get_a_note():
    assert counts("x", None, "reg/1.png", "img/2.png") == ([1, 1], 1)
    assert counts("x", None, "reg/1_cat/1.png") == ([1], 1)
    assert counts("x", None, "regular/1.png", "reg.png") == ([1, 1], 0)
    assert counts("reg", None, "1.png") == ([1], 0)  # named on purpose


def test_a_number_after_the_folder_takes_precedence():
    assert counts("img", 2, "10_a/1.png", "b/2.png") == ([2, 2], 1)
    assert counts("img", 1, "10_a/1.png", "b/2.png") == ([1, 1], 0)  # as the note without a number advises
    assert counts("img/10_a", 3, "1.png") == ([3], 0)
    assert counts("img", 4, "1.png", "b/2.png") == ([4, 4], 0)


@pytest.mark.parametrize("name", ["2023_holiday", "01_portraits", "0_off", "1000_x"])
def test_other_numbers_are_no_repeats_and_get_a_note(name):
    numbers, (note,) = count_repeats(Path("img"), None, [Path("img", name, "1.png"), Path("img", "2.png")])
    assert numbers == [1, 1] and name in note
    numbers, (note,) = count_repeats(Path(name), None, [Path(name, "1.png")])
    assert numbers == [1] and name in note
    assert count_repeats(Path("img"), 2, [Path("img", name, "1.png")]) == ([2], [])


def test_a_folder_that_could_be_another_one_repeated_gets_a_note(tmp_path):
    for name in ("a", "a:2"):
        (tmp_path / name).mkdir()
    images = [tmp_path / "a:2" / "1.png"]
    numbers, (note,) = count_repeats(tmp_path / "a:2", None, images)
    assert numbers == [1] and f"{tmp_path / 'a'}/:2" in note
    assert split_repeats(f"{tmp_path / 'a'}/:2") == (f"{tmp_path / 'a'}/", 2)
    (tmp_path / "a").rmdir()
    assert count_repeats(tmp_path / "a:2", None, images) == ([1], [])


def test_several_folders_are_checked_against_each_other(tmp_path):
    for name in ("a/b", "ab"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "file").write_text("")
    a, b, ab = (str(tmp_path / name) for name in ("a", "a/b", "ab"))
    check_folders([a, f"{ab}:2", f"{tmp_path / 'file'}:3"])  # a file may name images
    check_folders("missing")  # is reported with the option that names it
    for folders, named in [
        (["My", "Drawings"], r"My: .*'My' and 'Drawings'.*quotes"),
        ([a, "My", "Drawings"], r"My: .*'My' and 'Drawings'.*quotes"),
        ([a, "other"], "other: .*quotes"),
        (["other", a], "other: .*quotes"),
        ([a, f"{a}/../a:2"], r"a: .*a:2 "),
        ([b, a], "a/b: "),
        ([a, f"{b}:3"], "a/b: "),
        ([a, "3"], f"3: .*{a}:3"),
        (f"{a}:2,{ab}", f"{a}:2 {ab}"),
        (f"{a}; {ab}", f"{a} {ab}"),
        ([f"{a} {ab}:2"], f"{a} {ab}"),
    ]:
        with pytest.raises(UserError, match=f"^--train_data_dir .*{named}"):
            check_folders(folders)


def test_a_file_that_names_images_repeats_them_by_its_number_only(tmp_path):
    (tmp_path / "2_images.txt").write_text("10_a/1.png")
    images = [Path("/elsewhere/10_a/1.png"), tmp_path / "5_b" / "2.png"]
    for number, expected in ((None, 1), (3, 3)):
        assert count_repeats(tmp_path / "2_images.txt", number, images) == ([expected] * 2, [])
    assert split_repeats(f"{tmp_path / '2_images.txt'}:3") == (str(tmp_path / "2_images.txt"), 3)
