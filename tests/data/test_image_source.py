"""Folders and data sets: which images are found, with which captions; what is refused."""

import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from hypernet.data.image_source import open_image_source
from hypernet.utils.errors import UserError

DEFAULTS = {"train_data_dir": None, "dataset_name": None, "dataset_config_name": None, "image_column": "image"}
DEFAULTS |= {"caption_column": "text", "filename_word_regex": None, "filename_join_string": " "}


def source(**options):
    return open_image_source(SimpleNamespace(**{**DEFAULTS, **options}))


def picture(path, color="red"):
    path.parent.mkdir(exist_ok=True, parents=True)
    Image.new("RGB", (8, 8), color).save(path)


def captions(found):
    return {found.name(row).rpartition("/")[2]: found.captions[row][0] for row in range(len(found))}


def test_a_folder_with_captions_of_every_kind(tmp_path):
    for name in ("3-by hand.png", "test/2 red_cat_7.JPG", "train/deep/a.webp", "b.png", ".hidden.png", ".git/c.png"):
        picture(tmp_path / name)
    (tmp_path / "c.tiff").write_bytes(b"")  # whether it is an image is asked later
    (tmp_path / "notes.md").write_text("no image")
    (tmp_path / "3-by hand.txt").write_text("ein Haus, grün\n", encoding="utf-8")
    (tmp_path / "train" / "metadata.jsonl").write_text(json.dumps({"file_name": "deep/a.webp", "text": "a deep one"}))
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["b.png", "a, b"], ["3-by hand.png", "not this"], ["x", ""]])
    found = captions(source(train_data_dir=str(tmp_path)))
    expected = {
        "3-by hand.png": "ein Haus, grün",
        "2 red_cat_7.JPG": "red_cat_7",
        "a.webp": "a deep one",
        "b.png": "a, b",
    }
    assert found == expected | {"c.tiff": "c"}
    words = source(train_data_dir=str(tmp_path), filename_word_regex="[a-z]+", filename_join_string=", ")
    assert captions(words) == expected | {"2 red_cat_7.JPG": "red, cat", "c.tiff": "c"}


def test_a_stamp_changes_with_the_file(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png")
    before = source(train_data_dir=str(tmp_path)).stamps()
    assert before == source(train_data_dir=str(tmp_path)).stamps()
    picture(tmp_path / "b.png", "green")
    after = source(train_data_dir=str(tmp_path)).stamps()
    assert before[0] == after[0] and before[1] != after[1]


@pytest.mark.parametrize("saved, column", [(False, "picture"), (True, "picture"), (True, "image")])
def test_a_data_set(tmp_path, saved, column):
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    columns = {column: images, "said": ["a", None], "many": [["x", "y"], []], "number": [1, 2]}
    table = datasets.Dataset.from_dict(columns).cast_column(column, datasets.Image())
    if saved:
        datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        table.to_parquet(tmp_path / "set" / "train.parquet")
    options = {"dataset_name": str(tmp_path / "set"), "image_column": column}
    found = source(**options, caption_column="said")
    assert found.captions == [("a",), ("",)] and found.name(1) == f"row 1 of --dataset_name {tmp_path / 'set'}"
    assert found.read(0).startswith(b"\x89PNG") and found.stamps() == source(**options, caption_column="many").stamps()
    assert source(**options, caption_column="many").captions == [("x", "y"), ("",)]
    assert source(**options, caption_column="").captions == [("",), ("",)]
    with pytest.raises(UserError, match="--caption_column text: .* has no such column; it has .*, said, many, nu"):
        source(**options)
    with pytest.raises(UserError, match="--image_column none: .* has no such column; it has .*, said"):
        source(**{**options, "image_column": "none"}, caption_column="said")
    with pytest.raises(UserError, match="--image_column said: it holds no images; columns with images: " + column):
        source(dataset_name=options["dataset_name"], image_column="said", caption_column="said")
    with pytest.raises(UserError, match="--caption_column number: it holds no text, but int64; columns: .*, said"):
        source(**options, caption_column="number")


def test_metadata_of_every_kind(tmp_path):
    for name in "abcd":
        picture(tmp_path / f"{name}.png")
    lines = ['{"file_name": "a.png", "text": ["one", "two"]}', '{"file_name": "b.png", "text": "with\u2028a line"}']
    (tmp_path / "metadata.jsonl").write_text(
        "\n".join([*lines, '{"file_name": "c.png", "text": null}']), encoding="utf-8"
    )
    found = source(train_data_dir=str(tmp_path))
    assert found.captions == [("one", "two"), ("with\u2028a line",), ("",), ("d",)]
    assert source(train_data_dir=str(tmp_path), caption_column="").captions == [("",)] * 3 + [("d",)]
    (tmp_path / "metadata.jsonl").unlink()
    with open(tmp_path / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file_name", "text"], ["a.png", "two\nlines"]])
    assert source(train_data_dir=str(tmp_path)).captions[0] == ("two\nlines",)


def test_links_lead_nowhere_twice(tmp_path):
    picture(tmp_path / "z" / "a.png")
    picture(tmp_path.parent / f"{tmp_path.name} elsewhere" / "b.png")
    (tmp_path / "a").symlink_to(tmp_path / "z")
    (tmp_path / "b").symlink_to(tmp_path / "z")
    (tmp_path / "c").symlink_to(tmp_path.parent / f"{tmp_path.name} elsewhere")
    found = source(train_data_dir=str(tmp_path))
    assert [Path(found.name(row)) for row in range(len(found))] == [tmp_path / "c" / "b.png", tmp_path / "z" / "a.png"]


def test_the_nearest_metadata_counts_and_only_where_it_is_needed(tmp_path):
    for name in ("a/x.png", "z/x.png", "own.png"):
        picture(tmp_path / name)
    (tmp_path / "own.txt").write_text("its own")
    rows = [{"file_name": name, "text": "outer"} for name in ("a/x.png", "z/x.png")] + [{"file_name": "own.png"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for name in "az":
        (tmp_path / name / "metadata.jsonl").write_text('{"file_name": "x.png", "text": "inner"}')
    assert source(train_data_dir=str(tmp_path)).captions == [("inner",), ("its own",), ("inner",)]
    (tmp_path / "own.txt").unlink()
    with pytest.raises(UserError, match="row 3, column text: there is no such column, but file_name"):
        source(train_data_dir=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "own.png", "text": "a \\ud83d cat"}')
    with pytest.raises(UserError, match="row 1, column text: it holds half of a letter"):
        source(train_data_dir=str(tmp_path))
    (tmp_path / "metadata.jsonl").write_text("[" * 100_000)
    with pytest.raises(UserError, match="metadata.jsonl: it cannot be read"):
        source(train_data_dir=str(tmp_path))
    for file in tmp_path.rglob("metadata.jsonl"):
        file.unlink()
    with pytest.raises(UserError, match="--caption_column said: .* has no metadata.jsonl or metadata.csv"):
        source(train_data_dir=str(tmp_path), caption_column="said")


def test_what_may_have_been_meant_otherwise_is_noted(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.TXT").write_text("a caption")
    (tmp_path / "b.txt").write_text("nobody's")
    (tmp_path / "c.heic").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "metadata.csv").write_text("file_name,text\nd.png,x\na.png,y\n")
    found = source(train_data_dir=str(tmp_path))
    assert found.captions == [("a caption",)]
    assert found.notes == [
        ".heic files are not read (1); save them as PNG or JPEG",
        f"{tmp_path / 'metadata.csv'}: 1 of 2 entries name no image, such as d.png",
        f"1 .txt files belong to no image, such as {tmp_path / 'b.txt'}",
    ]


def test_files_that_cannot_be_opened_are_skipped(tmp_path):
    picture(tmp_path / "good.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    for suffix in (b"png", b"txt"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn." + suffix)).write_bytes(b"x")
    found = source(train_data_dir=str(tmp_path))
    assert len(found) == 2 and found.notes == [] and found.stamps()[1].endswith("link.png")
    assert found.problems == [f"{tmp_path}/gr\\udcfcn.png: its name is not UTF-8; rename it"]
    with pytest.raises(ValueError, match="it cannot be read .No such file"):
        found.read(1)
    holes = datasets.Dataset.from_dict({"image": [None, str(tmp_path / "good.png")]})
    holes = holes.cast_column("image", datasets.Image()).add_column("text", ["a", "b"])
    holes.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="it holds no image"):
        source(dataset_name=str(tmp_path / "set")).read(0)


def test_mistakes(tmp_path):
    folder = tmp_path / "pictures"
    with pytest.raises(UserError, match="there is no such folder"):
        source(train_data_dir=str(folder))
    folder.mkdir()
    with pytest.raises(UserError, match="there is no image in it"):
        source(train_data_dir=str(folder))
    picture(folder / "b.JPEG")
    with pytest.raises(UserError, match="it is a file"):
        source(train_data_dir=str(folder / "b.JPEG"))
    (folder / "metadata.csv").write_text("file_name,caption\nb.JPEG,a cat\n")
    with pytest.raises(
        UserError, match="row 1, column text: there is no such column, but file_name, caption; name the captions with"
    ):
        source(train_data_dir=str(folder))
    assert source(train_data_dir=str(folder), caption_column="caption").captions == [("a cat",)]
    (folder / "metadata.csv").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "b.JPEG", "text": \n')
    with pytest.raises(UserError, match=r"metadata\.jsonl: it cannot be read"):
        source(train_data_dir=str(folder))
    (folder / "metadata.jsonl").unlink()
    (folder / "b.txt").write_bytes("grün".encode("latin-1"))
    with pytest.raises(UserError, match=r"b\.txt: it is not UTF-8 text \(byte 2\)"):
        source(train_data_dir=str(folder))
    (folder / "b.txt").unlink()
    (folder / "metadata.jsonl").write_text('{"file_name": "b.JPEG", "text": ["a", 3]}')
    with pytest.raises(UserError, match="row 1, column text: it holds no text, but int"):
        source(train_data_dir=str(folder))
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text("file_name,text\nb.JPEG,a cat, sitting\n")
    with pytest.raises(
        UserError, match="row 1: it has more or fewer cells than there are columns; a caption with commas"
    ):
        source(train_data_dir=str(folder))
    (folder / "metadata.csv").unlink()
    with pytest.raises(UserError, match="it is a folder of images; name it with --train_data_dir"):
        source(dataset_name=str(folder))
    for name in ("somebody/no-such-set", str(tmp_path / "none")):
        with pytest.raises(UserError, match="it cannot be loaded, neither from here nor from the Hub") as error:
            source(dataset_name=name)
        assert "\n" not in str(error.value)
