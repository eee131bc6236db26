"""Metadata files: which image each entry names, and what is refused or noted."""

import json
import unicodedata
from pathlib import Path

import pytest

from hypernet.data.image_folder import read_image_folder
from hypernet.data.metadata import match_names
from hypernet.utils.errors import UserError
from tests.helpers.encoding import write_image


def write_metadata(folder, *names, file="metadata.jsonl"):
    """Write an entry for each name, with the name as its caption."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("\n".join(json.dumps({"file_name": name, "text": name}) for name in names))


SPELLINGS = {  # of the image sub/Café 1.png
    "sub/Café 1.png": True,
    "./sub/Café 1.png": True,
    "other/../sub/Café 1.png": True,
    "../images/sub/Café 1.png": True,
    "/home/me/data/sub/Café 1.png": False,
    "train/sub/Café 1.png": False,
    "C:\\Users\\me\\sub\\Café 1.png": False,
    "sub\\Café 1.png": False,
    "../elsewhere/sub/Café 1.png": False,
    "Café 1.png": False,
    "SUB/CAFÉ 1.PNG": False,
    "sub/Café 1": False,
    "train/sub/Café 1": False,
    unicodedata.normalize("NFD", "sub/Café 1.png"): False,
    " sub//Café 1.png ": False,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_accepts_every_spelling_of_a_path(tmp_path, name):
    folder = tmp_path / "images"
    images = [folder / "a.png", folder / "sub" / "Café 1.png", folder / "sub" / "Café 11.png"]
    exact, guessed = match_names([name], folder, images)
    assert (exact if SPELLINGS[name] else guessed) == {name: images[1]} and len(exact) + len(guessed) == 1


def test_skips_ambiguous_names():
    folder = Path("images")
    images = [folder / "a" / "1.png", folder / "b" / "1.png", folder / "2.png", folder / "3.png", folder / "3.jpg"]
    for unclear in (
        ["1.png"],
        ["c/1.png"],
        ["x/2.png", "y/2.png"],
        ["3"],
        ["2.jpg"],
        ["12.png"],
        ["a"],
        ["", "/", "a\0b"],
    ):
        assert match_names(unclear, folder, images) == ({}, {}), unclear
    # an exact match is not taken by another entry
    exact, guessed = match_names(["2.png", "x/2.png", "x/a/1.png"], folder, images)
    assert exact == {"2.png": images[2]} and guessed == {"x/a/1.png": images[0]}


def test_images_with_the_same_name_in_many_folders():
    images = [Path("images") / str(i) / "1.png" for i in range(2_000)]
    names = [f"train/{i}/1.png" for i in range(2_000)]
    exact, guessed = match_names(names, Path("images"), images)
    assert not exact and list(guessed.values()) == images


def test_reads_and_notes_inexact_paths(tmp_path):
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    write_metadata(tmp_path, "train/1.png", "train/2.png", "train/3.png")
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("train/1.png",), ("train/2.png",)] and all(folder.captioned)
    unknown, guessed = folder.notes
    assert "1 of 3" in unknown and '"train/3.png"' in unknown
    assert "2 entries" in guessed and '"train/1.png"' in guessed


def test_notes_several_entries_of_one_image(tmp_path):
    for name in ("1.png", "2.png"):
        write_image(tmp_path / name)
    rows = [("1.png", "a"), ("./1.png", "b"), ("2.png", "c"), ("2.png", "c")]
    lines = [json.dumps({"file_name": name, "text": text}) for name, text in rows]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    folder = read_image_folder(tmp_path)
    (note,) = folder.notes
    assert folder.captions == [("b",), ("c",)] and "1 entry" in note and '"./1.png"' in note
    (tmp_path / "metadata.csv").write_text("file_name,text\n2.png,d\n")
    assert "2 entries" in read_image_folder(tmp_path).notes[0]
    write_metadata(tmp_path / "sub", "3.png")
    write_image(tmp_path / "sub" / "3.png")
    (tmp_path / "metadata.csv").write_text("file_name,text\nsub/3.png,d\n")  # the nearest file is meant to win
    assert read_image_folder(tmp_path).notes == [note]


def test_notes_metadata_beside_text_files(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("its own" if name < "c" else "c.png")
    write_metadata(tmp_path, "a.png", "b.png", "c.png")
    folder = read_image_folder(tmp_path)
    (note,) = folder.notes
    assert folder.captions[0] == ("its own",) and note.startswith("2 ") and str(tmp_path / "a.txt") in note
    assert read_image_folder(tmp_path, caption_column="").notes == []


def test_refuses_metadata_in_a_folder_without_images(tmp_path):
    write_image(tmp_path / "cat.png")
    write_metadata(tmp_path / "sub", "cat.png")
    with pytest.raises(UserError, match=r"sub/metadata\.jsonl: 1 of 1 "):
        read_image_folder(tmp_path)
    write_image(tmp_path / "dog.png")
    write_metadata(tmp_path, "cat.png")  # then the other file may be an old one
    assert len(read_image_folder(tmp_path).notes) == 1
    (tmp_path / "metadata.jsonl").unlink()
    for name in ("cat", "dog"):
        (tmp_path / f"{name}.txt").write_text("its own")
    assert len(read_image_folder(tmp_path).notes) == 1


def test_notes_names_that_differ_in_unicode_form(tmp_path):
    write_image(tmp_path / "é.png")
    write_metadata(tmp_path, unicodedata.normalize("NFD", "é.png"))
    (note,) = read_image_folder(tmp_path).notes
    assert "1 entry" in note and "Unicode" in note


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_reads_csv_with_any_separator(tmp_path, separator):
    write_image(tmp_path / "1.png")
    text = "file_name,text,size\n1.png,a cat,3\n".replace(",", separator)
    (tmp_path / "metadata.csv").write_text(text)
    assert read_image_folder(tmp_path).captions == [("a cat",)]
    (tmp_path / "metadata.csv").write_text(text.replace(" cat", f"{separator} b"))
    with pytest.raises(UserError, match=r"metadata\.csv: row 1"):
        read_image_folder(tmp_path)


def test_refuses_metadata_that_name_no_image(tmp_path):
    write_image(tmp_path / "1.png")
    write_metadata(tmp_path, "one.png", "two.png")
    with pytest.raises(UserError, match=r'metadata\.jsonl: 2 of 2 .*"one\.png".*file_name'):
        read_image_folder(tmp_path)
    (tmp_path / "1.txt").write_text("its own")  # then no caption is missing
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("its own",)] and len(folder.notes) == 1
    write_metadata(tmp_path)
    assert "empty" in read_image_folder(tmp_path).notes[0]
    write_image(tmp_path / "sub" / "2.png")
    write_metadata(tmp_path, "one.png")
    write_metadata(tmp_path / "sub", "2.png")  # the outer file matches nothing, but every image has a caption
    assert read_image_folder(tmp_path).captions == [("its own",), ("2.png",)]
