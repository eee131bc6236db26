"""Items of the dataset against the models called by hand; what a second run encodes."""

import hashlib
import itertools
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from examples.quickstart.tools.shapes import draw, random_shape
from hypernet.data.batch_sampler import Batch, EpochBatchSampler
from hypernet.data.dataset import build_prompt_sampler, describe_data, some_prompts
from hypernet.data.image_index import index_images
from hypernet.data.image_source import open_image_source
from hypernet.training.loss import diffusion_loss
from hypernet.utils.hashing import derive_seed
from tests.helpers.encoding import configure, encode, encode_by_hand, one, write_image


def test_items_equal_the_models_called_by_hand(epsilon_models, images_dir, tmp_path):
    models = epsilon_models
    (tmp_path / "two.txt").write_text("[filewords]\nart by [name]\n")
    dataset, records = encode(models, configure(images_dir, tmp_path, template=str(tmp_path / "two.txt")))
    seen = set()
    for epoch in range(10):
        item = one(dataset, epoch, 4)
        latents = encode_by_hand(models, Image.open(images_dir / "4.png")).mean[0] * 0.7
        assert (item["latents"][0] - latents).abs().max() < 1e-5
        (prompt,) = item["prompts"]
        assert prompt in ((images_dir / "4.txt").read_text(), "art by me")
        seen.add(prompt)
        padding = {"padding": "max_length", "max_length": 32, "truncation": True}
        tokens = models.tokenizers[0]([prompt], **padding, return_tensors="pt")
        with torch.no_grad():
            embeds = models.text_encoders[0](tokens.input_ids)[0]
        assert set(item["conditions"]) == {"encoder_hidden_states"}
        assert (item["conditions"]["encoder_hidden_states"] - embeds).abs().max() < 1e-5
        generator = torch.Generator().manual_seed(derive_seed(3, "item", epoch, records[4].sha256))
        assert torch.equal(item["noise"][0], torch.randn(4, 8, 8, generator=generator))
        assert item["timesteps"] == torch.randint(0, 1000, (), generator=generator)
        assert item["weights"].tolist() == [[[[1.0]]]]
    assert len(seen) == 2


def test_alpha_weights_in_a_batch_with_opaque_images(epsilon_models, mixed_dir, tmp_path):
    dataset, _ = encode(epsilon_models, configure(mixed_dir, tmp_path, alpha_weight=True))
    weights = dataset.__getitems__(Batch(0, 0, [2, 3], [0.5, 0.5]))["weights"]
    assert (weights[0] == 0.5).all() and weights[1].mean() == pytest.approx(0.5) and weights[1].min() == 0
    assert weights[1, 0, -1, 0] > weights[1, 0, 0, 0]  # the bottom is opaque


def test_copies_of_an_image_get_their_own_noise(epsilon_models, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    shutil.copy(folder / "0.png", folder / "0 again.png")
    dataset, records = encode(epsilon_models, configure(folder, tmp_path))
    first, again = (one(dataset, 0, index) for index in (0, 1))
    assert records[0].sha256 == records[1].sha256 and torch.equal(first["latents"], again["latents"])
    assert not torch.equal(first["noise"], again["noise"])


def test_encodes_only_what_has_changed(epsilon_models, images_dir, tmp_path, encode_counts):
    models, folder = epsilon_models, tmp_path / "images"
    shutil.copytree(images_dir, folder)

    def start(**options):
        encode_counts.update(images=0, prompts=0)
        encode(models, configure(folder, tmp_path / "cache", **options))
        return encode_counts["images"], encode_counts["prompts"]

    assert len({(folder / f"{i}.txt").read_text() for i in range(8)}) == 8
    assert start() == (8, 8)
    assert start() == (0, 0)
    assert start(latent_sampling="random", alpha_weight=True, alpha_background="black", seed=9) == (0, 0)
    assert start(random_flip=True) == (8, 0)
    assert start(caption_dropout=0.1) == (0, 1)
    for i in range(3):
        draw(random_shape(50 + i), 64).save(folder / f"-{i} new {i}.png")
    assert start() == (3, 3)
    tags = {"tag_dropout": 0.5, "caption_variants": 3, "latent_sampling": "once"}
    start(**tags)
    draw(random_shape(61), 64).save(folder / "- first of all.png")
    assert start(**tags) in [(1, 1), (1, 2)]  # its own prompts: with its one tag, and without
    (folder / "- first of all.png").unlink()
    (folder / "3.png").rename(folder / "moved.png")
    (folder / "3.txt").rename(folder / "moved.txt")
    assert start() == (0, 0)
    (folder / "4.txt").write_text("another caption")
    assert start() == (0, 1)
    draw(random_shape(70), 64).save(folder / "5.png")
    assert start() == (1, 0)
    assert start(resolution="32") == (11, 0)
    assert start(shuffle_tags=True) == (0, 0)  # these prompts are encoded at each step
    weight = models.vae.encoder.conv_in.weight
    with torch.no_grad():
        before = weight[0, 0, 0, 0].item()
        weight[0, 0, 0, 0] += 1e-6
        assert start() == (11, 0)
        weight[0, 0, 0, 0] = before
    weight = models.text_encoders[0].get_input_embeddings().weight
    with torch.no_grad():
        before = weight[0, 0].item()
        weight[0, 0] += 1e-6
        assert start()[0] == 0 and encode_counts["prompts"] == 11
        weight[0, 0] = before
    assert start() == (0, 0)


def test_repeats_are_encoded_once_and_differ_in_everything_random(epsilon_models, images_dir, tmp_path, encode_counts):
    shutil.copytree(images_dir, tmp_path / "images" / "3_stars")
    write_image(tmp_path / "images" / "other.png")
    encode_counts.update(images=0, prompts=0)
    config = configure(tmp_path / "images", tmp_path / "cache", random_flip=True)
    dataset, records = encode(epsilon_models, config)
    assert encode_counts["images"] == 2 * 9 and len(dataset) == 9
    batches = EpochBatchSampler(records, 4, seed=3)
    assert len(batches) == 7  # 8 images three times and one once: 25
    seen: dict[int, list] = {}
    for batch in itertools.islice(batches, 14):
        items = dataset.__getitems__(batch)
        for index, noise in zip(batch.indices, items["noise"]):
            seen.setdefault(index, []).append(noise)
    for index, noises in seen.items():
        assert len(noises) == 2 * records[index].repeats
        # they are those of the first epochs without repeats
        expected = [one(dataset, epoch, index)["noise"][0] for epoch in range(len(noises))]
        assert all(sum(torch.equal(noise, other) for other in noises) == 1 for noise in expected)


@pytest.mark.parametrize("probability", [0.2, 0.5, 0.9, 1.0])
def test_the_share_of_mirrored_images_is_the_one_asked_for(epsilon_models, images_dir, tmp_path, probability):
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path, flip_p=probability))
    plain, mirrored = (dataset.latents.sample(0, 0, flip, None) for flip in (0, 1))
    flipped = [torch.equal(dataset.sample(epoch, 0).latents, mirrored) for epoch in range(600)]
    assert not torch.equal(plain, mirrored) and abs(sum(flipped) / 600 - probability) < 0.06


def test_random_flip_is_a_probability_of_one_half(epsilon_models, images_dir, tmp_path):
    dataset, records = encode(epsilon_models, configure(images_dir, tmp_path, random_flip=True))
    same, _ = encode(epsilon_models, configure(images_dir, tmp_path, flip_p=0.5))
    for epoch in range(20):
        generator = torch.Generator().manual_seed(derive_seed(3, "item", epoch, records[0].sha256))
        flip = int(torch.randint(2, (), generator=generator))  # as runs of earlier versions
        sample = dataset.sample(epoch, 0)
        assert torch.equal(sample.latents, dataset.latents.sample(0, 0, flip, None))
        assert torch.equal(sample.noise, torch.randn(sample.noise.shape, generator=generator))
        assert all(torch.equal(a, b) for a, b in zip(sample[:3], same.sample(epoch, 0)[:3]))


def test_shuffled_tags_are_encoded_at_each_step(epsilon_models, mixed_dir, tmp_path):
    dataset, _ = encode(epsilon_models, configure(mixed_dir, tmp_path, shuffle_tags=True, keep_tags=1))
    prompts = {tuple(dataset.__getitems__(Batch(epoch, 0, [0, 2], [0.5, 0.5]))["prompts"]) for epoch in range(30)}
    caption = (mixed_dir / "2.txt").read_text()
    assert prompts == {("a cat, red, blue", caption), ("a cat, blue, red", caption)}
    item = one(dataset, 0, 0)
    assert not dataset.is_cached and "conditions" not in item
    live = dataset.conditions(item)["encoder_hidden_states"]
    dataset, _ = encode(epsilon_models, configure(mixed_dir, tmp_path, shuffle_tags=True, caption_variants=2))
    assert one(dataset, 0, 0)["conditions"]["encoder_hidden_states"].shape == live.shape == (1, 32, 12)


def test_a_flipped_bit_in_the_cache_is_never_trained_on(epsilon_models, images_dir, tmp_path, encode_counts, capsys):
    config = configure(images_dir, tmp_path, random_flip=True)

    def batches():
        dataset, _ = encode(epsilon_models, config)
        return [one(dataset, epoch, index) for epoch in range(3) for index in range(8)]

    def same(a, b):  # except for the rounding of another batch size
        states = (batch["conditions"]["encoder_hidden_states"] for batch in (a, b))
        drawn = all(torch.equal(a[name], b[name]) for name in ("noise", "timesteps", "weights"))
        return drawn and torch.allclose(a["latents"], b["latents"], atol=1e-5) and torch.allclose(*states, atol=1e-5)

    expected = batches()
    for kind, needle in (("latents", None), ("prompts", None), ("pictures", derive_hash(images_dir / "3.png"))):
        (file,) = tmp_path.glob(f"{kind}-*/*.arrow")
        data = bytearray(file.read_bytes())
        data[data.index(needle) if needle else len(data) // 2] ^= 1
        file.write_bytes(data)
        encode_counts.update(images=0, prompts=0)
        capsys.readouterr()
        assert all(map(same, batches(), expected)), kind
        assert encode_counts == {"images": kind == "latents", "prompts": kind == "prompts"}
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("1 ") and str(file.parent) in line


def derive_hash(path):
    """Return the SHA-256 of a file, as it is in the cache."""
    return hashlib.sha256(path.read_bytes()).hexdigest().encode()


def test_an_image_alone_in_the_last_batch_weighs_as_much_as_a_full_one(epsilon_models, images_dir, tmp_path):
    """Each step is the mean over its own images."""
    dataset, records = encode(epsilon_models, configure(images_dir, tmp_path))
    batches = EpochBatchSampler(records[:5], 4, seed=0)
    for batch, count in zip(batches, (4, 1)):
        items = dataset.__getitems__(batch)
        errors = torch.from_numpy(np.random.default_rng(0).normal(size=items["latents"].shape))
        loss = diffusion_loss(errors, torch.zeros_like(errors), items["weights"])
        assert len(batch.indices) == count and loss.item() == pytest.approx(errors.square().mean().item())


def described(config):
    """Return the lines that a run prints about its data."""
    source = open_image_source(config)
    records, problems = index_images(source, config, 8)
    batches = EpochBatchSampler(records, 1, seed=0, rounds=config.repeats)
    return describe_data(source, records, problems, batches, config).splitlines()


def notes(lines):
    return [line for line in lines if line.startswith("note: ")]


def test_example_prompts_are_those_of_training(tmp_path):
    for number in range(9):
        write_image(tmp_path / "images" / f"a {number}, b, c, d.png", (number, 0, 0))
    options = {"template": "[filewords], by [name]", "name": "me", "shuffle_tags": True, "tag_dropout": 0.5}
    config = configure(tmp_path / "images", tmp_path / "cache", **options, caption_dropout=0.5)
    source = open_image_source(config)
    records, _ = index_images(source, config, 8)
    prompts, state = build_prompt_sampler(source, records, config), torch.get_rng_state()
    some = some_prompts(prompts)
    assert len(some) == 3 and torch.equal(state, torch.get_rng_state())
    for prompt, index in zip(some, (0, 4, 8)):
        assert prompt == next(filter(None, (prompts.sample(epoch, index) for epoch in range(99))))


def test_prints_example_prompts_and_caption_notes(tmp_path):
    folder = tmp_path / "images"
    names = ("a cat", "b dog", "IMG_2034", "a cow", "a \x1b[31m pig")
    for number, name in enumerate(names):
        write_image(folder / f"{name}.png", (number, 0, 0))
    options = {"template": "[filewords], by [name]", "name": "me"}
    lines = described(configure(folder, tmp_path / "cache", **options))
    (line,) = [line for line in lines if line.startswith("prompts such as: ")]
    assert '"IMG_2034, by me"' in line and '"a cat, by me"' in line
    (wordless,) = notes(lines)
    assert '"IMG_2034"' in wordless and not any("\x1b" in line for line in lines)
    (folder / "a cat.txt").write_text("two\nlines, " + "and more " * 1000)
    (folder / "IMG_2034.caption").write_text("a horse")
    lines = described(configure(folder, tmp_path / "cache", **options))
    (line,) = [line for line in lines if line.startswith("prompts such as: ")]
    assert '"two lines, and more' in line and '"a horse, by me"' in line and len(line) < 400
    mixed, several_lines = notes(lines)
    assert "3 of 5" in mixed and "--caption_lines" in several_lines
    assert not any("3 of 5" in line for line in described(configure(folder, tmp_path / "cache", template="a thing")))


def test_counts_follow_repeats_and_templates_are_those_of_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for short paths in notes
    folder = Path("images")
    for number, name in enumerate(("4_cat/sits", "4_cat/runs", "dog/barks")):
        write_image(folder / f"{name}.png", (number, 0, 0))
    (folder / "dog" / "template.txt").write_text("no cat, [filewords]\n")
    lines = described(configure(folder, tmp_path / "cache", template="[folder]: [filewords] by [name]", repeats=2))
    (used,) = [line for line in lines if line.startswith("images used: ")]
    assert re.findall(r"\d+", used) == ["3", "0", "18", "18"]  # images, skipped, images per epoch, batches per epoch
    assert re.findall(r"\d+", lines[-1]) == ["64", "64", "3", "18"]
    (prompts,) = [line for line in lines if line.startswith("prompts such as: ")]
    assert '"cat: runs by me"' in prompts and '"no cat, barks"' in prompts
    assert any(str(folder / "dog" / "template.txt") in line and not line.startswith("note: ") for line in lines)
    (note,) = notes(lines)
    assert "4_cat" in note
    (folder / "4_cat" / "template.txt").write_text("a [caption]\n")
    first, second, third = notes(described(configure(folder, tmp_path / "cache", template="[filewords], by [name]")))
    assert "4_cat" in first and second.startswith(f"note: {folder / '4_cat' / 'template.txt'}: [caption] ")
    assert third.startswith("note: --template ") and str(folder) in third  # no image uses it
