"""Images and captions of a folder or dataset, and what changes when an image does."""

import os

import datasets
import pytest
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.data.image_source import open_image_source
from hypernet.data.validation_split import open_validation_folder
from hypernet.utils.errors import UserError
from tests.helpers.encoding import write_image


def source(**options):
    return open_image_source(TrainingConfig(**options))


def test_a_stamp_changes_with_its_file(tmp_path):
    write_image(tmp_path / "a.png")
    write_image(tmp_path / "b.png")
    before = source(train_data_dir=str(tmp_path)).stamps()
    assert before == source(train_data_dir=str(tmp_path)).stamps()
    write_image(tmp_path / "b.png", "green")
    after = source(train_data_dir=str(tmp_path)).stamps()
    assert before[0] == after[0] and before[1] != after[1]


@pytest.mark.parametrize("saved, column", [(False, "photo"), (True, "photo"), (True, "image")])
def test_a_dataset(tmp_path, saved, column):
    images = [Image.new("RGB", (8, 8), color) for color in ("red", "lime")]
    columns = {column: images, "said": ["a", None], "many": [["x", "y"], []], "number": [1, 2], "nul": ["a", "\0"]}
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
    with pytest.raises(UserError, match="^--caption_column text: .*, said, many, nu"):
        source(**options)
    with pytest.raises(UserError, match="^--image_column none: .*, said"):
        source(**{**options, "image_column": "none"}, caption_column="said")
    with pytest.raises(UserError, match=f"^--image_column said: .*: {column}$"):
        source(dataset_name=options["dataset_name"], image_column="said", caption_column="said")
    with pytest.raises(UserError, match="^--caption_column number: .*int64.*, said"):
        source(**options, caption_column="number")
    with pytest.raises(UserError, match="^--caption_column nul: row 1: .*NUL"):
        source(**options, caption_column="nul")


def test_a_missing_image_gives_a_reason(tmp_path):
    write_image(tmp_path / "good.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere.png")
    found = source(train_data_dir=str(tmp_path))
    assert len(found) == 2 and found.notes == [] and found.stamps()[1].endswith("link.png")
    with pytest.raises(ValueError, match="no such file"):
        found.read(1)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="pipe"):
        source(train_data_dir=str(tmp_path)).read(2)
    holes = datasets.Dataset.from_dict({"image": [None, str(tmp_path / "good.png")]})
    holes = holes.cast_column("image", datasets.Image()).add_column("text", ["a", "b"])
    holes.save_to_disk(tmp_path / "set")
    with pytest.raises(ValueError, match="no image"):
        source(dataset_name=str(tmp_path / "set")).read(0)


def test_several_folders_are_one_source_in_their_order(tmp_path):
    for number, name in enumerate(("z/10_red cat/1.png", "z/more/2.png", "a/3.png", "b:2/4.png")):
        write_image(tmp_path / name, (number, 0, 0))
        (tmp_path / name).with_suffix(".txt").write_text(f"caption {number}")
    (tmp_path / "a" / "broken.heic").write_bytes(b"")
    (tmp_path / "b:2" / "broken.heic").write_bytes(b"")
    folders = [str(tmp_path / "z"), f"{tmp_path / 'a'}:3", str(tmp_path / "b:2")]
    found = source(train_data_dir=folders)
    assert len(found) == 4 and found.captions == [(f"caption {number}",) for number in range(4)]
    assert [found.label(row) for row in range(4)] == ["1.png", "2.png", "3.png", "4.png"]
    assert found.repeats == [10, 1, 3, 1] and found.words == ["red cat", "more", "a", "b:2"]
    assert found.option == f"--train_data_dir {tmp_path / 'z'} {tmp_path / 'a'} {tmp_path / 'b:2'}"
    assert found.read(3) == (tmp_path / "b:2" / "4.png").read_bytes() and len(set(found.stamps())) == 4
    assert len(set(found.notes)) == len(found.notes) == 3 and any("10_red cat" in note for note in found.notes)
    with pytest.raises(UserError, match="^--train_data_dir .*none: "):
        source(train_data_dir=[*folders, str(tmp_path / "none")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="^--train_data_dir .*empty: "):
        source(train_data_dir=[*folders, f"{tmp_path / 'empty'}:2"])


def test_templates_of_folders_and_their_names(tmp_path):
    for number, name in enumerate(("1.png", "cats/2.png", "cats/deep/3.png", "5_dogs/4.png")):
        write_image(tmp_path / name, (number, 0, 0))
    (tmp_path / "cats" / "template.txt").write_text("a cat, [filewords]\n\nthe [folder] of [name]\n")
    found = source(train_data_dir=str(tmp_path))
    rows = {found.label(row): row for row in range(4)}
    templates = found.templates("[filewords] in [folder]")
    assert templates[rows["1.png"]] == [f"[filewords] in {tmp_path.name}"]
    assert templates[rows["2.png"]] == ["a cat, [filewords]", "the cats of [name]"]
    assert templates[rows["3.png"]] == ["a cat, [filewords]", "the deep of [name]"]
    assert templates[rows["4.png"]] == ["[filewords] in dogs"]
    assert not any("template.txt" in note for note in found.notes)
    table = datasets.Dataset.from_dict({"image": [Image.new("RGB", (8, 8))] * 2, "text": ["a", "b"]})
    table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    assert source(dataset_name=str(tmp_path / "set")).templates("x [name]") == [["x [name]"]] * 2


def test_caption_lines_of_folders_lists_and_datasets(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "images" / f"{name}.png")
        (tmp_path / "images" / f"{name}.caption").write_text(f"{name} cat\n\n{name} dog\n")
    (tmp_path / "list.txt").write_text("images/a.png\n")
    lines = [("a cat", "a dog"), ("b cat", "b dog")]
    assert source(train_data_dir=str(tmp_path / "images"), caption_lines=True).captions == lines
    assert source(train_data_dir=str(tmp_path / "images")).captions[0] == ("a cat\n\na dog",)
    options = {"validation_data_dir": str(tmp_path / "images"), "caption_lines": True}
    validation = open_validation_folder(TrainingConfig(**options))
    assert validation is not None and validation.captions == lines
    found = source(train_data_dir=[f"{tmp_path / 'list.txt'}:3", str(tmp_path / "images")], caption_lines=True)
    assert found.captions == [lines[0], *lines] and found.repeats == [3, 1, 1]
    table = datasets.Dataset.from_dict({"image": [str(tmp_path / "images" / "a.png")], "text": [["x", "y\nz\n"]]})
    table.cast_column("image", datasets.Image()).save_to_disk(tmp_path / "set")
    assert source(dataset_name=str(tmp_path / "set"), caption_lines=True).captions == [("x", "y", "z")]


def test_refuses_datasets_that_cannot_be_loaded(tmp_path):
    write_image(tmp_path / "images" / "b.JPEG")
    with pytest.raises(UserError, match="^--dataset_name .*images: .* --train_data_dir"):
        source(dataset_name=str(tmp_path / "images"))
    for name in ("somebody/no-such-set", str(tmp_path / "none")):
        with pytest.raises(UserError) as error:
            source(dataset_name=name)
        assert str(error.value).startswith(f"--dataset_name {name}: ") and "\n" not in str(error.value)
