"""Contents of a run compared with those its checkpoint was trained with."""

import json

import pytest
import torch

from hypernet.data.image_index import ImageRecord
from hypernet.training.run_identity import (
    RunIdentity,
    TrainedWith,
    count_changes,
    data_contents,
    image_digests,
    model_contents,
)
from tests.helpers.tiny_models import open_models

PLACES = {"train_data_dir": "/a/images", "dataset_name": None, "template": "/a/lines.txt", "validation_data_dir": None}
PLACES |= {"pretrained_model_name_or_path": "/a/model", "revision": None, "variant": None, "lora": ["/a/ink.pt:1"]}
PLACES |= {"model_config": None, "original_config": None, "pretrained_vae_model_name_or_path": None}
CONTENTS = {"images": "3 a", "captions": "b", "templates": "c", "UNet": "d", "VAE": "e", "LoRAs": "f"}


def compare(contents, before=CONTENTS, batches="", **places):
    identity = RunIdentity({**PLACES, **places}, PLACES)
    identity.before = TrainedWith(5, {}, dict(before), [], "h")
    differing, note = identity.compare({**CONTENTS, **contents}, batches)
    return [line.split()[0] for line in differing], note


@pytest.mark.parametrize(
    "option, value",
    [("train_data_dir", "/b"), ("template", "style"), ("lora", ["/b:1"]), ("pretrained_model_name_or_path", "a/b")],
)
def test_only_contents_count(option, value):
    kinds = {"train_data_dir": "images", "template": "templates", "lora": "LoRAs"}
    kind = kinds.get(option, "UNet")
    assert compare({}, **{option: value}) == ([], None)
    assert compare({kind: "9 z"}, **{option: value})[0] == [option]
    unknown = {name: content for name, content in CONTENTS.items() if name != kind}
    assert compare({}, unknown) == ([], None)  # of an earlier version
    assert compare({}, unknown, **{option: value})[0] == [option]


def test_changes_in_place_are_noted_except_those_of_the_model():
    model = "pretrained_model_name_or_path"
    for kind, option in [("UNet", model), ("VAE", model), ("LoRAs", "lora")]:
        assert compare({kind: "z"})[0] == [option]
    assert compare({"VAE": "z"}, pretrained_vae_model_name_or_path="v")[0] == ["pretrained_vae_model_name_or_path"]
    differing, note = compare({"images": "4 z", "captions": "z", "templates": "z"})
    assert differing == [] and "3 then, 4 now" in note and "templates" in note and "captions" not in note
    assert "captions" in compare({"captions": "z"})[1] and "step 5" in compare({"captions": "z"})[1]


def test_images_of_an_earlier_version_are_known_by_their_batches():
    unknown = {name: content for name, content in CONTENTS.items() if name != "images"}
    assert compare({}, unknown, "h", train_data_dir="/b") == ([], None)
    assert compare({}, unknown, "other", train_data_dir="/b")[0] == ["train_data_dir"]


class Source:
    """Stands for an `ImageSource`."""

    captions = [("a cat",), ("a dog",), ("a cat", "a kitten")]
    words = ["", "", ""]

    @classmethod
    def templates(cls, template):
        return [[template.replace("[folder]", words)] for words in cls.words]


class Options:
    """Stands for a `TrainingConfig`."""

    template, validation_data_dir = "a painting of [filewords]", None


def test_images_and_captions_do_not_depend_on_names_and_order():
    records = [ImageRecord(row, f"{row}" * 64, 64, 64, False, (64, 64)) for row in range(3)]
    contents = data_contents(Source, records, [], Options)
    assert data_contents(Source, records[::-1], [], Options) == contents
    assert data_contents(Source, records[1:], [], Options)["images"] != contents["images"]
    records[1].row = 0  # another caption
    changed = data_contents(Source, records, [], Options)
    assert changed["images"] == contents["images"] and changed["captions"] != contents["captions"]


def test_repeats_and_templates_of_folders_belong_to_the_contents(monkeypatch):
    records = [ImageRecord(row, f"{row}" * 64, 64, 64, False, (64, 64)) for row in range(3)]
    once = data_contents(Source, records, [], Options)
    monkeypatch.setattr(Source, "words", ["cats", "dogs", "cats"])
    assert data_contents(Source, records, [], Options) == once  # the template does not use them
    monkeypatch.setattr(Options, "template", "[filewords], a [folder]")
    in_folders = data_contents(Source, records, [], Options)
    assert data_contents(Source, records[::-1], [], Options) == in_folders
    monkeypatch.setattr(Source, "words", ["cats", "dogs", "dogs"])
    moved = data_contents(Source, records, [], Options)
    assert {kind for kind in moved if moved[kind] != in_folders[kind]} == {"templates"}
    records[1].repeats = 3
    repeated = data_contents(Source, records, [], Options)
    assert {kind for kind in moved if moved[kind] != repeated[kind]} == {"repeats"}
    records[1].repeats, records[2].repeats = 1, 3
    assert data_contents(Source, records, [], Options)["repeats"] not in (repeated["repeats"], once["repeats"])


def test_other_repeats_are_another_run_if_the_option_says_so(tmp_path):
    contents, once = {"repeats": "x"}, {"repeats": "1"}
    assert compare(contents, CONTENTS | once, train_data_dir="/a/images:2")[0] == ["train_data_dir"]
    assert compare(once, CONTENTS | once, train_data_dir="/b/images") == ([], None)
    assert compare(contents, CONTENTS | contents, train_data_dir=["/b/images:2", "/c"]) == ([], None)
    both = compare(contents | {"images": "4 z"}, CONTENTS | once, train_data_dir="/b")[0]
    assert both == ["train_data_dir"]  # named once
    differing, note = compare(contents, CONTENTS | once)  # the folder was renamed to 2_cats
    assert differing == [] and "repeats" in note
    checkpoint = tmp_path / "step-000005"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"step": 5, "base_model_hash": "d"}')
    saved = {"options": {}, "contents": {"images": "3 a"}}  # by an earlier version
    (checkpoint / "progress.json").write_text(json.dumps({"trained_with": saved, "batches": {"fingerprint": "h"}}))
    assert TrainedWith.read(checkpoint, {}).contents == {"images": "3 a", "repeats": "1"}


@pytest.mark.parametrize(
    "now, images, captions",
    [
        (["a x", "b y", "c z"], 0, 0),
        (["a x", "b y", "d z"], 1, 0),  # c replaced in place
        (["a x", "b w", "d z"], 1, 1),  # and another caption changed
        (["a x", "b y", "d w"], 1, 1),  # and its own
        (["a y", "b x", "c z"], 0, 2),
        (["a x", "b y"], 0, 0),
        (["a x", "b w"], 0, 1),
        (["a x", "b y", "c z", "d w"], 1, 0),
        (["a x", "a x", "b y", "c z"], 1, 0),  # a copy
        ([], 0, 0),
    ],
)
def test_counts_changed_images_and_captions(now, images, captions):
    assert count_changes(["a x", "b y", "c z"], now) == (images, captions)


def test_the_note_counts_changed_images_and_captions():
    records = [ImageRecord(row, f"{row}" * 64, 64, 64, False, (64, 64)) for row in range(3)]
    identity = RunIdentity(PLACES, PLACES)
    before = data_contents(Source, records, [], Options)
    identity.before = TrainedWith(5, {}, before, [], "h", image_digests(Source, records))
    records[0].sha256, records[1].row = "9" * 64, 2  # another image, and another image's caption
    _, note = identity.compare(data_contents(Source, records, [], Options), "", image_digests(Source, records))
    assert "1 of 3 images" in note and "1 of 3 captions" in note
    assert identity.state_dict()["image_digests"] == image_digests(Source, records)
    identity.before.image_digests = []  # of an earlier version
    assert "3 then, 3 now" in identity.compare(data_contents(Source, records, [], Options))[1]


def test_captions_that_no_template_uses_do_not_count(monkeypatch):
    monkeypatch.setattr(Options, "template", "a painting")
    records = [ImageRecord(row, f"{row}" * 64, 64, 64, False, (64, 64)) for row in range(3)]
    assert len({data_contents(Source, part, [], Options)["captions"] for part in (records, records[1:])}) == 1


def test_a_model_is_the_same_in_another_precision_and_folder(models_dir):
    contents = model_contents(open_models(models_dir / "epsilon"))
    assert model_contents(open_models(models_dir / "epsilon", torch.bfloat16)) == contents
    skipped = open_models(models_dir / "epsilon", prediction_type="v_prediction")
    differing = {kind for kind, content in model_contents(skipped).items() if content != contents[kind]}
    assert differing == {"noise schedule"}
    others = open_models(models_dir / "epsilon")
    with torch.no_grad():
        next(others.vae.parameters()).add_(1)
        next(others.text_encoders[0].parameters()).add_(1)
    changed = {kind for kind, content in model_contents(others).items() if content != contents[kind]}
    assert changed == {"VAE", "text encoder"}
