"""Folders and data sets: which images are found, with which captions; what is refused."""

import csv
import json
from types import SimpleNamespace

import datasets
import pytest
from PIL import Image

from hypernet.errors import UserError
from hypernet.sources import open_source

DEFAULTS = {"train_data_dir": None, "dataset_name": None, "dataset_config_name": None, "image_column": "image"}
DEFAULTS |= {"caption_column": "text", "filename_word_regex": None, "filename_join_string": " "}


def source(**options):
    return open_source(SimpleNamespace(**{**DEFAULTS, **options}))


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


@pytest.mark.parametrize("saved", [False, True])
def test_a_data_set(tmp_path, saved):
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    columns = {"picture": images, "said": ["a", None], "many": [["x", "y"], ["z"]], "number": [1, 2]}
    table = datasets.Dataset.from_dict(columns).cast_column("picture", datasets.Image())
    if saved:
        datasets.DatasetDict({"train": table}).save_to_disk(tmp_path / "set")
    else:
        (tmp_path / "set").mkdir()
        table.to_parquet(tmp_path / "set" / "train.parquet")
    options = {"dataset_name": str(tmp_path / "set"), "image_column": "picture"}
    found = source(**options, caption_column="said")
    assert found.captions == [("a",), ("",)] and found.name(1) == f"row 1 of --dataset_name {tmp_path / 'set'}"
    assert found.read(0).startswith(b"\x89PNG") and found.stamps() == source(**options, caption_column="many").stamps()
    assert source(**options, caption_column="many").captions == [("x", "y"), ("z",)]
    assert source(**options, caption_column="").captions == [("",), ("",)]
    with pytest.raises(UserError, match="--caption_column text: .* has no such column; it has picture, said, many, nu"):
        source(**options)
    with pytest.raises(UserError, match="--image_column image: .* has no such column; it has picture, said"):
        source(dataset_name=options["dataset_name"], caption_column="said")
    with pytest.raises(UserError, match="--image_column said: it holds no images; columns with images: picture"):
        source(dataset_name=options["dataset_name"], image_column="said", caption_column="said")
    with pytest.raises(UserError, match="--caption_column number: row 0 of .* holds no text there, but int"):
        source(**options, caption_column="number")


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
    with pytest.raises(UserError, match="row 1 has no 'text', it has file_name, caption; name the captions with"):
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
    for name in ("somebody/no-such-set", str(tmp_path / "none")):
        with pytest.raises(UserError, match="it cannot be loaded, neither from here nor from the Hub") as error:
            source(dataset_name=name)
        assert "\n" not in str(error.value)
