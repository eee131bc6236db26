"""Which images become validation images."""

import dataclasses
import json
import shutil

import datasets
import pytest
from PIL import Image

from examples import prepare
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_source import ImageSource
from hypernet.data.validation_split import _families, open_validation_folder, split_validation
from hypernet.utils.errors import UserError
from tests.helpers.image_sets import index_folder


def row(record):
    return record.row


def test_split_depends_only_on_the_images(models_dir, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    config, source, records = index_folder(models_dir, folder, tmp_path, "--validation_split=0.3", "--seed=1")
    _, validation, training = split_validation(source, open_validation_folder(config), records, config, 8)
    assert len(validation) == 2 and sorted([*validation, *training], key=row) == records

    for i in range(8):
        shutil.copy(folder / f"{i}.png", folder / f"copy {i}.png")  # copies stay on their side
    config, source, records = index_folder(models_dir, folder, tmp_path, "--validation_split=0.3", "--seed=2")
    _, again, rest = split_validation(source, open_validation_folder(config), records, config, 8)
    assert {record.sha256 for record in again} == {record.sha256 for record in validation} and len(again) == 4
    assert not {record.sha256 for record in again} & {record.sha256 for record in rest}

    before = [training[0].sha256]  # the images a run has started with stay, whatever the split would choose now
    _, again, rest = split_validation(source, open_validation_folder(config), records, config, 8, before)
    assert {record.sha256 for record in again} == set(before) and len(again) + len(rest) == 16


def test_images_made_from_one_source_image_stay_together(models_dir, images_dir, tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "prepared"
    raw.mkdir()
    for i in range(8):
        with Image.open(images_dir / f"{i}.png") as image:
            image.resize((64, 200)).save(raw / f"{i}.png")  # split into four parts
    prepare.main([str(raw), str(folder), "--size=64", "--split", "--flip", "--sheet_images=0"])
    config, source, records = index_folder(models_dir, folder, tmp_path, "--validation_split=0.2")
    assert len(records) == 64

    def source_images(records):
        return {source.label(record.row).split("-")[0] for record in records}

    def split(config):
        _, validation, training = split_validation(source, open_validation_folder(config), records, config, 8)
        assert sorted([*validation, *training], key=row) == records
        return validation, training

    validation, training = split(config)
    # a fifth is 13 images; two source images would be 16
    assert not source_images(validation) & source_images(training) and len(validation) == 8
    with open(folder / "prepare.jsonl", "ab") as record:  # the last line of a prepare.py that was killed
        record.write(b'{"source": "9.png", "fil')
    assert split(config)[0] == validation
    assert len(split(dataclasses.replace(config, validation_split=0.02))[0]) == 8  # at least one source image
    assert len(split(dataclasses.replace(config, validation_split=0.98))[1]) == 8

    # the run has started with two of a source image's eight parts; the parts added since are on neither side
    before = [record.sha256 for record in validation[:2]]
    _, still, rest = split_validation(source, None, records, config, 8, before)
    assert still == validation[:2] and rest == training
    assert " 6 images " in source.notes[-1]
    with pytest.raises(UserError, match="--validation_split"):
        split_validation(source, None, validation, config, 8, before)

    (folder / "prepare.jsonl").unlink()  # without it nothing shows that they belong together
    validation, training = split(config)
    assert len(validation) == 13 and source_images(validation) & source_images(training)


def test_repeats_are_never_on_both_sides(models_dir, images_dir, tmp_path):
    for name in ("10_a", "b"):
        shutil.copytree(images_dir, tmp_path / "images" / name)  # the same images in both
    (tmp_path / "images" / "b" / "0.png").unlink()
    config, source, records = index_folder(models_dir, tmp_path / "images", tmp_path, "--validation_split=0.3")
    _, validation, training = split_validation(source, None, records, config, 8)
    assert len({record.sha256 for record in validation}) == 2
    assert not {record.sha256 for record in validation} & {record.sha256 for record in training}
    assert sum(record.repeats for record in [*validation, *training]) == 8 * 10 + 7


def test_families_of_images(tmp_path):
    def families(files: dict[str, str], records: dict[str, dict]):
        """Return the families among `files` (name -> content), given the prepare.jsonl files of `records`."""
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for name, made in records.items():
            lines = [json.dumps({"source": source, "files": made[source]}, ensure_ascii=False) for source in made]
            (tmp_path / name / "prepare.jsonl").write_text("\n".join([*lines, '{"files": ["x.png"]}', "[]", "{"]))
        paths = [str(tmp_path / name) for name in files]
        images = datasets.Dataset.from_dict({"image": [{"path": path} for path in paths]})
        source = ImageSource("--train_data_dir", images, [("",)] * len(paths), is_folder=True)
        indexed = [ImageRecord(row, text, 8, 8, False, (8, 8)) for row, text in enumerate(files.values())]
        return sorted("".join(sorted(family)) for family in _families(source, indexed))

    # a copy that is not in the record ("0.png"), and two source images that share a part ("c"), join the family
    files = {"0.png": "a", "cat-1.png": "a", "cat-2.png": "b", "dog-1.png": "c", "dog-2.png": "d", "fox-1.png": "c"}
    files |= {"fox\u2028-2.png": "e", "x.png": "f", "y.png": "g"}
    made = {"cat.jpg": ["cat-1.png", "cat-2.png"], "dog.jpg": ["dog-1.png", "dog-2.png"]}
    made |= {"fox.jpg": ["fox-1.png", "fox\u2028-2.png"]}
    assert families(files, {"": made}) == ["ab", "cde", "f", "g"]
    # the nearest record counts; source images of the same name in two records are different images
    records = {f"more/{i}": {"1.jpg": ["deep/1.png", "2.png"]} for i in "pq"}
    inner = {f"more/{i}/{name}": f"{i}{name[0]}" for i in "pq" for name in ("deep/1.png", "2.png")}
    assert families(inner, records) == ["p2pd", "q2qd"]


def test_validation_folder(models_dir, images_dir, mixed_dir, tmp_path):
    folder = tmp_path / "validation"
    shutil.copytree(mixed_dir, folder)
    shutil.copy(images_dir / "0.png", folder / "trained on.png")
    config, source, records = index_folder(models_dir, images_dir, tmp_path, f"--validation_data_dir={folder}")
    validation_source, validation, training = split_validation(
        source, open_validation_folder(config), records, config, 8
    )
    assert len(validation) == 6 and training == records
    assert validation_source.notes[-1].startswith("1 image of --validation_data_dir")
    assert "trained on" not in {validation_source.label(record.row) for record in validation}
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(images_dir / "0.png", folder)
    with pytest.raises(UserError, match="--validation_data_dir"):
        split_validation(source, open_validation_folder(config), records, config, 8)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--validation_split=1"], "--validation_split 1.0: "),
        (["--validation_split=0.99"], "--validation_split 0.99: .* 8 "),
        (["--validation_data_dir={images}/sub"], "--validation_data_dir .*sub: .*--train_data_dir"),
        (["--validation_split=0.1", "--validation_data_dir=x"], "--validation_split 0.1: .*--validation_data_dir"),
        (["--validation_data_dir=x"], "--validation_data_dir x: "),
        (["--validation_loss_steps=5"], "--validation_loss_steps 5: .*--validation_split"),
    ],
)
def test_user_errors_name_the_option(models_dir, images_dir, tmp_path, flags, named):
    with pytest.raises(UserError, match=named) as error:
        flags = [flag.format(images=images_dir) for flag in flags]
        config, source, records = index_folder(models_dir, images_dir, tmp_path, *flags)
        split_validation(source, open_validation_folder(config), records, config, 8)
    assert "\n" not in str(error.value)
