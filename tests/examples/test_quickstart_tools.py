"""The recipe of the next quickstart model, on sets of plain shapes in place of the artists' emoji."""

import functools
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageOps

from examples.quickstart.tools import build_model, classifier, classifier_images, measure, scenes, sets
from examples.quickstart.tools.architecture import build_vae
from hypernet.utils.errors import UserError

CIRCLE = '<circle cx="16" cy="16" r="{radius}" fill="#{color:06x}"/>'


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Eight sets of colored circles as subjects; the last has no dog and another name for the fire engine."""
    patch, folder = pytest.MonkeyPatch(), tmp_path_factory.mktemp("sets")
    for number, hand in enumerate(sets.HANDS):
        icons = {}
        for index, names in enumerate(sets.SUBJECTS.values()):
            icons[names[0]] = {"body": CIRCLE.format(radius=8 + number, color=index * 98765 % (1 << 24))}
        icon_set = {"icons": icons, "aliases": {}, "width": 32, "height": 32}
        if hand == sets.HANDS[-1]:
            del icons["dog-face"]
            icons["fireengine-of-old"] = icons.pop("fire-engine")
            icon_set["aliases"]["fireengine"] = {"parent": "fireengine-of-old"}
        (folder / f"{hand}.json").write_text(json.dumps(icon_set))
    patch.setattr(sets, "CACHE_DIR", folder)
    for cached in (sets.load_set, sets.find, sets.common_icons, sets.render_icon):
        cached.cache_clear()
    yield
    patch.undo()
    for cached in (sets.load_set, sets.find, sets.common_icons, sets.render_icon):
        cached.cache_clear()


def test_subjects_are_found_under_each_sets_own_names(shapes):
    assert len(sets.SUBJECTS) >= 120
    for hand in sets.MODEL_HANDS:
        assert all(sets.find(subject, hand) for subject in sets.SUBJECTS)
    assert sets.find("dog", sets.HANDS[-1]) is None
    assert sets.find("fire engine", sets.HANDS[-1]) == "fireengine"


def test_a_set_that_cannot_be_fetched_is_a_user_error(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "")  # without npm
    monkeypatch.setattr(sets, "CACHE_DIR", tmp_path)
    with pytest.raises(UserError, match="npm"):
        sets.load_set.__wrapped__("openmoji")
    assert not list(tmp_path.iterdir())


def test_rendering_without_resvg_is_a_user_error(shapes, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(UserError, match="resvg-py"):
        sets.render_icon.__wrapped__("cat-face", "noto")


def test_an_emoji_is_rendered_from_edge_to_edge(shapes):
    for hand in (sets.HANDS[0], sets.HANDS[-1]):
        assert sets.render("fire engine", hand).getchannel("A").getbbox() == (0, 0, 192, 192)


def test_an_image_shows_its_scene(shapes):
    scene = scenes.Scene("cat", "noto", "blue", side=0.5, x=0.25, y=0.5)
    pixels = np.asarray(scenes.draw(scene), np.int16)
    ground, emoji = pixels[0, -1], np.asarray(sets.render("cat", "noto"))[96, 96, :3]
    assert np.abs(ground - scenes.BACKGROUNDS["blue"]).max() <= 8
    assert (pixels[:, 66:] == ground).all() and np.abs(pixels[64, 32] - emoji).max() <= 1
    assert scenes.caption(scene) == "a cat on a blue background"
    big = scenes.Scene("umbrella", "fluent-emoji", "orange", "big")
    assert scenes.caption(big, name_hand=True) == "a glossy drawing of a big umbrella on an orange background"


def test_random_scenes_lie_inside_the_image_and_keep_letters_readable(shapes):
    rng = random.Random(0)
    drawn = [scenes.random_scene(rng, sets.HANDS) for _ in range(2000)]
    assert all(abs(at - 0.5) <= 0.5 - scene.side / 2 for scene in drawn for at in (scene.x, scene.y))
    assert not any(scene.mirrored for scene in drawn if scene.subject in scenes.NOT_MIRRORED)
    assert {scene.hand for scene in drawn} == set(sets.HANDS) and len({scene.subject for scene in drawn}) >= 130
    centered = scenes.Scene("cat", "noto", "red", side=0.75)
    mirrored = scenes.draw(scenes.Scene("cat", "noto", "red", side=0.75, mirrored=True))
    assert np.array_equal(np.asarray(ImageOps.mirror(scenes.draw(centered))), np.asarray(mirrored))


def test_no_subject_comes_twice_in_a_training_folder(shapes, tmp_path):
    scenes.write_images(tmp_path, "openmoji", 32, seed=1)
    captions = [path.read_text().split(" on ")[0] for path in tmp_path.glob("*.txt")]
    assert len(set(captions)) == len(list(tmp_path.glob("*.png"))) == 32


def test_a_resumed_or_extended_training_equals_an_uninterrupted_one(tmp_path):
    class Killed(Exception):
        pass

    def run(steps, path, killed_at=None):
        weight = torch.nn.Parameter(torch.ones(3))

        def loss_at(step):
            if step == killed_at:
                raise Killed
            return ((weight - torch.randn(3, generator=torch.Generator().manual_seed(step))) ** 2).sum()

        build_model.train("test", [weight], loss_at, steps, 0.1, 0.9, path, save_every=4)
        return weight.detach()

    reference = run(20, tmp_path / "a.pt")
    with pytest.raises(Killed):
        run(20, tmp_path / "b.pt", killed_at=18)
    assert torch.equal(run(20, tmp_path / "b.pt"), reference)
    assert torch.equal(run(30, tmp_path / "b.pt"), run(30, tmp_path / "c.pt"))  # 14 steps of it were the shorter run's


def test_builds_and_measures_a_model(shapes, tmp_path, monkeypatch):
    few = "--vae_steps 2 --steps 2 --images 48 --device cpu".split()
    monkeypatch.setattr(sys, "argv", ["build", *few, "--work_dir", str(tmp_path), "--output_dir", str(tmp_path / "m")])
    build_model.main()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "m", dtype=torch.float32)
    assert sum(path.stat().st_size for path in (tmp_path / "m").rglob("*")) < 26e6
    text = "Ünïcode 🐈 on a blue background"
    assert pipeline.tokenizer.decode(pipeline.tokenizer(text).input_ids, skip_special_tokens=True).replace(" ", "") == (
        text.lower().replace(" ", "")
    )
    images = measure.sample(pipeline, ["a cat on a blue background"] * 2, steps=1)
    assert [image.size for image in images] == [(128, 128)] * 2
    assert set(classifier.judge(classifier.Classifier().eval(), images)) == {"subject", "hand", "background"}


def test_the_classifier_in_the_repository_knows_the_openmoji_images():
    folder = Path(classifier.__file__).parents[1] / "images"
    paths = sorted(folder.glob("*.png"))
    seen = classifier.judge(classifier.load_classifier(), [Image.open(path) for path in paths])
    captions = [path.with_suffix(".txt").read_text(encoding="utf-8") for path in paths]
    assert seen["hand"].count("openmoji") >= 30 and len(paths) == 32
    assert sum(f" {subject} on " in text for subject, text in zip(seen["subject"], captions)) >= 29
    assert sum(f" {ground} background" in text for ground, text in zip(seen["background"], captions)) >= 31


def test_the_hand_is_learned_from_every_seen_emoji_and_no_unseen_one(shapes, monkeypatch):
    rendered, dot = [], Image.new("RGBA", (192, 192), "black")
    monkeypatch.setattr(classifier_images, "render_icon", lambda *icon: rendered.append(icon) or dot)
    pixels, labels = classifier_images.hand_images(1, 10, "test")
    seen, unseen = classifier_images.all_pairs(unseen=False), classifier_images.all_pairs(unseen=True)
    assert rendered and set(rendered) == {(sets.find(subject, hand), hand) for subject, hand in seen}
    assert len(seen) + len(unseen) == 8 * len(sets.SUBJECTS) - 1 and len(unseen) >= 8 * len(sets.SUBJECTS) / 20
    assert pixels.dtype == torch.uint8 and pixels.shape == (len(seen), 3, 128, 128)
    assert labels["hand"].tolist() == [sets.HANDS.index(hand) for _, hand in rendered]


def test_a_classifier_is_trained_if_its_weights_are_missing(shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "PATH", tmp_path / "classifier.safetensors")
    monkeypatch.setattr(classifier_images, "VAE_PATH", tmp_path / "vae")
    build_vae((8, 8, 8, 8), norm_num_groups=4).save_pretrained(tmp_path / "vae")
    few = [("cat", hand) for hand in sets.HANDS]
    for module in (classifier, classifier_images):
        monkeypatch.setattr(module, "all_pairs", lambda unseen: few)
    monkeypatch.setattr(classifier_images, "is_unseen", lambda *pair: pair not in few)
    short = functools.partial(classifier.train_classifier, steps=2, per_pair=1, others=0)
    monkeypatch.setattr(classifier, "train_classifier", short)
    torch.manual_seed(0)
    before, trained = classifier.Classifier().state_dict(), classifier.load_classifier()
    for name, value in trained.state_dict().items():
        assert not value.is_floating_point() or value.dtype == torch.float32
        assert not torch.equal(value, before[name]), f"{name} is not trained"
    assert classifier.PATH.stat().st_size < 3e6
    monkeypatch.setattr(classifier, "train_classifier", lambda: pytest.fail("trained again"))
    table = classifier.accuracy(classifier.load_classifier(), per_pair=1, vae=classifier_images.load_vae())
    assert list(table) == list(sets.HANDS) and all(
        set(shares) == set(classifier_images.HEADS) for shares in table.values()
    )
