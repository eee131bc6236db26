"""Folders: which images are found, with which captions; what is refused and what is noted."""

import csv
import json
import os
from pathlib import Path

import pytest

from hypernet.data.image_folder import read_image_folder
from hypernet.utils.errors import UserError
from tests.helpers.encoding import write_image


def captions(folder):
    """Map the file names of a folder's images to their first captions."""
    return {path.name: captions[0] for path, captions in zip(folder.images, folder.captions)}


def refusal(root, **options):
    """Return the message of the UserError that reading the folder raises."""
    with pytest.raises(UserError) as error:
        read_image_folder(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_captions_of_every_kind(tmp_path):
    for name in ("3-by hand.png", "test/2 red_cat_7.JPG", "train/deep/a.webp", "b.png", ".hidden.png", ".git/c.png"):
        write_image(tmp_path / name)
    (tmp_path / "c.tiff").write_bytes(b"")  # whether it is an image is checked later
    (tmp_path / "notes.md").write_text("not an image")
    (tmp_path / "3-by hand.txt").write_text("ein Haus, grün\n", encoding="utf-8")
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "deep/a.webp", "text": "a deep one"}))
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["b.png", "a, b"], ["3-by hand.png", "not this"], ["x", ""]])
    folder = read_image_folder(tmp_path)
    expected = {
        "3-by hand.png": "ein Haus, grün",
        "2 red_cat_7.JPG": "red_cat_7",
        "a.webp": "a deep one",
        "b.png": "a, b",
    }
    assert captions(folder) == expected | {"c.tiff": "c"}
    from_names = {path.name for path, captioned in zip(folder.images, folder.captioned) if not captioned}
    assert from_names == {"2 red_cat_7.JPG", "c.tiff"}
    words = read_image_folder(tmp_path, word_regex="[a-z]+", join_string=", ")
    assert captions(words) == expected | {"2 red_cat_7.JPG": "red, cat", "c.tiff": "c"}


def test_metadata_of_every_kind(tmp_path):
    for name in "abcd":
        write_image(tmp_path / f"{name}.png")
    lines = ['{"file_name": "a.png", "text": ["one", "two"]}', '{"file_name": "b.png", "text": "with\u2028a line"}']
    lines.append('{"file_name": "c.png", "text": null}')
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert read_image_folder(tmp_path).captions == [("one", "two"), ("with\u2028a line",), ("",), ("d",)]
    assert read_image_folder(tmp_path, caption_column="").captions == [("",)] * 3 + [("d",)]
    (tmp_path / "metadata.jsonl").unlink()
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["a.png", "two\nlines"]])
    assert read_image_folder(tmp_path).captions[0] == ("two\nlines",)
    (tmp_path / "metadata.csv").write_text("file_name,caption\na.png,a cat\n")
    assert read_image_folder(tmp_path, caption_column="caption").captions[0] == ("a cat",)


def test_linked_folders_are_read_once(tmp_path):
    write_image(tmp_path / "z" / "a.png")
    write_image(tmp_path.parent / f"{tmp_path.name} elsewhere" / "b.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "b").symlink_to(tmp_path / "z")
    (tmp_path / "c").symlink_to(tmp_path.parent / f"{tmp_path.name} elsewhere")
    assert read_image_folder(tmp_path).images == [tmp_path / "c" / "b.png", tmp_path / "z" / "a.png"]


def test_the_nearest_metadata_file_counts(tmp_path):
    for name in ("a/x.png", "z/x.png", "own.png"):
        write_image(tmp_path / name)
    (tmp_path / "own.txt").write_text("its own")
    rows = [{"file_name": name, "text": "outer"} for name in ("a/x.png", "z/x.png")] + [{"file_name": "own.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in "az":
        (tmp_path / name / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "inner"}')
    # the entry of own.png has no text, but it is not needed
    assert read_image_folder(tmp_path).captions == [("inner",), ("its own",), ("inner",)]
    (tmp_path / "own.txt").unlink()
    assert "metadata.jsonl: row 3, column text: " in refusal(tmp_path)


METADATA_MISTAKES = [
    (
        "metadata.csv",
        "file_name,caption\nb.JPEG,a cat\n",
        ["row 1, column text", "file_name, caption", "--caption_column"],
    ),
    ("metadata.csv", "file_name,text\nb.JPEG,a cat, sitting\n", ["row 1"]),
    ("metadata.jsonl", '{"file_name": "b.JPEG", "text": \n', []),
    ("metadata.jsonl", '{"file_name": "b.JPEG", "text": ["a", 3]}', ["row 1, column text", "int"]),
    ("metadata.jsonl", '{"file_name": "b.JPEG", "text": "a \\ud83d cat"}', ["row 1, column text", "surrogate"]),
    ("metadata.jsonl", "[" * 100_000, []),
]


@pytest.mark.parametrize("name, text, named", METADATA_MISTAKES)
def test_refuses_metadata_with_mistakes(tmp_path, name, text, named):
    write_image(tmp_path / "b.JPEG")
    (tmp_path / name).write_text(text)
    message = refusal(tmp_path)
    assert message.startswith(f"{tmp_path / name}: ") and all(part in message for part in named)


def test_refuses_folders_that_cannot_be_used(tmp_path):
    folder = tmp_path / "images"
    assert refusal(folder).startswith(f"--train_data_dir {folder}: ")
    folder.mkdir()
    assert refusal(folder, option="SRC").startswith(f"SRC {folder}: ")
    write_image(folder / "b.JPEG")
    assert refusal(folder / "b.JPEG").startswith(f"--train_data_dir {folder / 'b.JPEG'}: ")
    assert refusal(folder, caption_column="said").startswith("--caption_column said: ")  # there is no metadata file
    (folder / "b.txt").write_bytes("grün".encode("latin-1"))
    message = refusal(folder)
    assert message.startswith(f"{folder / 'b.txt'}: ") and "UTF-8" in message and "byte 2" in message


def test_notes_what_may_be_a_mistake(tmp_path):
    write_image(tmp_path / "a.png")
    (tmp_path / "a.TXT").write_text("a caption")
    (tmp_path / "b.txt").write_text("belongs to no image")
    (tmp_path / "c.heic").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\nd.png,x\na.png,y\n")
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("a caption",)]
    unsupported, unknown, overridden, orphan = folder.notes
    assert ".heic" in unsupported and "1" in unsupported
    assert unknown.startswith(f"{tmp_path / 'metadata.csv'}: 1 of 2 ") and "d.png" in unknown
    assert overridden.startswith("1 ") and str(tmp_path / "a.TXT") in overridden
    assert orphan.startswith("1 .txt") and str(tmp_path / "b.txt") in orphan


def test_reads_captions_of_kohyas_scripts(tmp_path):
    for name in "abc":
        write_image(tmp_path / f"{name}.png")
    (tmp_path / "a.caption").write_text("a cat\n")
    (tmp_path / "b.Caption").write_text("not this")
    (tmp_path / "b.txt").write_text("a dog")
    (tmp_path / "d.caption").write_text("of no image")
    folder = read_image_folder(tmp_path)
    assert folder.captions == [("a cat",), ("a dog",), ("c",)] and folder.captioned == [True, True, False]
    shadowed, orphan = folder.notes
    assert shadowed.startswith("1 .caption ") and "b.Caption" in shadowed
    assert orphan.startswith("1 .caption ") and "d.caption" in orphan


def test_a_template_file_is_of_its_folder_unless_an_image_has_its_name(tmp_path):
    for name in ("a.png", "own/b.png", "own/Template.jpg", "other/c.png"):
        write_image(tmp_path / name)
    for name in ("template.txt", "own/template.txt", "other/Template.TXT"):
        (tmp_path / name).write_text("by [name]")
    (tmp_path / "own" / "Template.txt").write_text("a caption")
    folder = read_image_folder(tmp_path)
    files = {image.name: file for image, file in zip(folder.images, folder.template_files)}
    above, other = str(tmp_path / "template.txt"), str(tmp_path / "other" / "Template.TXT")
    assert files == {"a.png": above, "b.png": above, "Template.jpg": above, "c.png": other}
    assert captions(folder)["Template.jpg"] == "a caption"
    (note,) = folder.notes
    assert note.startswith("1 .txt ") and str(tmp_path / "own" / "template.txt") in note


@pytest.mark.parametrize("text", ["", "by [Name]", "fine\na [folders]"])
def test_refuses_template_files_with_mistakes(tmp_path, text):
    write_image(tmp_path / "sub" / "a.png")
    (tmp_path / "sub" / "template.txt").write_text(text)
    assert refusal(tmp_path).startswith(f"{tmp_path / 'sub' / 'template.txt'}: ")


UNREAD = ["a.json", "a.tags", "a.md", "metadata.json", "Metadata.jsonl", "metadata1000.jsonl", "captions.jsonl"]
UNREAD += ["metadata.json1", "metadata.parquet", "captions.csv", "a.caption.txt", "a.png.txt"]


@pytest.mark.parametrize("name", UNREAD)
def test_notes_captions_that_are_not_read(tmp_path, name):
    write_image(tmp_path / "a.png")
    (tmp_path / name).write_text("a cat")
    (note,) = read_image_folder(tmp_path).notes
    assert note.startswith(f"1 {os.path.splitext(name)[1]} ") and str(tmp_path / name) in note
    assert ("rename to metadata.jsonl" in note) == (name == "Metadata.jsonl")
    if not name.endswith(".txt"):
        (tmp_path / "a.txt").write_text("its caption")  # then the other file is not needed
        assert read_image_folder(tmp_path).notes == []


def test_ignores_other_files(tmp_path):
    write_image(tmp_path / "a.png")
    for name in ("prepare.jsonl", "README.md", "a.npz", ".a.json", "a.xmp", "b.yaml"):
        (tmp_path / name).write_text("")
    assert read_image_folder(tmp_path).notes == []


def test_skips_images_whose_names_are_not_utf8(tmp_path):
    write_image(tmp_path / "good.png")
    for suffix in (b"png", b"txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn." + suffix)).write_bytes(b"x")
    folder = read_image_folder(tmp_path)
    assert folder.images == [tmp_path / "good.png"] and folder.notes == []
    (problem,) = folder.problems
    assert problem.startswith(f"{tmp_path}/gr\\udcfcn.png: ") and "UTF-8" in problem
