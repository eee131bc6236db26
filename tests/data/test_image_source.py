"""Images and captions of a folder or dataset, and what changes when an image does."""

import os

import datasets
import pytest
from PIL import Image

from hypernet.config import TrainingConfig
from hypernet.data.image_source import open_image_source
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


def test_refuses_datasets_that_cannot_be_loaded(tmp_path):
    write_image(tmp_path / "images" / "b.JPEG")
    with pytest.raises(UserError, match="^--dataset_name .*images: .* --train_data_dir"):
        source(dataset_name=str(tmp_path / "images"))
    for name in ("somebody/no-such-set", str(tmp_path / "none")):
        with pytest.raises(UserError) as error:
            source(dataset_name=name)
        assert str(error.value).startswith(f"--dataset_name {name}: ") and "\n" not in str(error.value)
