"""Encoded images and prompts against the VAE and text encoder called by hand; what is encoded when; batches."""

import itertools
import random
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from examples.quickstart.tools.draw import draw, random_scene
from hypernet.config import TrainingConfig
from hypernet.data.arrow_cache import RowCache
from hypernet.data.batch_sampler import Batch, EpochBatchSampler
from hypernet.data.dataset import encode_dataset
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_io import alpha_weights
from hypernet.data.image_source import open_image_source
from hypernet.data.latents import PIXELS_AT_ONCE
from hypernet.stable_diffusion.model import encode_images
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed
from tests.helpers.tiny_models import open_models


@pytest.fixture(scope="module")
def models(models_dir):
    return open_models(models_dir / "epsilon")


def configure(folder, cache_dir, **options):
    options = {"resolution": "64", "seed": 3, "output_dir": "out/me", **options}
    return TrainingConfig(
        pretrained_model_name_or_path="x", train_data_dir=str(folder), cache_dir=str(cache_dir), **options
    )


def prepare(models, config, vae_dtype=torch.float32):
    source = open_image_source(config)
    pictures, problems = index_images(source, config, 8)
    return encode_dataset(models, source, pictures, config, vae_dtype), pictures, problems


def one(dataset, epoch, index):
    """The item of one image, as a batch of its own."""
    return dataset.__getitems__(Batch(epoch, 0, [index], [1.0]))


def encode_by_hand(models, image):
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].contiguous() / 127.5 - 1
    with torch.no_grad():
        return models.vae.encode(pixels).latent_dist


def test_items_equal_what_the_models_say(models, images_dir, tmp_path):
    (tmp_path / "two.txt").write_text("[filewords]\nart by [name]\n")
    config = configure(images_dir, tmp_path, template=str(tmp_path / "two.txt"))
    dataset, pictures, _ = prepare(models, config)
    seen = set()
    for epoch in range(10):
        item = one(dataset, epoch, 4)
        latents = encode_by_hand(models, Image.open(images_dir / "4.png")).mean[0] * 0.7
        assert (item["latents"][0] - latents).abs().max() < 1e-5
        (prompt,) = item["prompts"]
        assert prompt in ((images_dir / "4.txt").read_text(), "art by me")
        seen.add(prompt)
        tokens = models.tokenizers[0](
            [prompt], padding="max_length", max_length=32, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            embeds = models.text_encoders[0](tokens.input_ids)[0]
        assert set(item["conditions"]) == {"encoder_hidden_states"}
        assert (item["conditions"]["encoder_hidden_states"] - embeds).abs().max() < 1e-5
        generator = torch.Generator().manual_seed(derive_seed(3, "item", epoch, pictures[4].sha256))
        assert torch.equal(item["noise"][0], torch.randn(4, 8, 8, generator=generator))
        assert item["timesteps"] == torch.randint(0, 1000, (), generator=generator)
        assert item["weights"].tolist() == [[[[1.0]]]]
    assert len(seen) == 2


MODES = {
    "center": {},
    "none": {"crop": "none"},
    "wide": {"resolution": "96x64"},
    "buckets": {"aspect_buckets": True, "resolution": "128"},
    "upscaled": {"aspect_buckets": True, "resolution": "128", "bucket_upscale": True},
    "varsize": {"varsize": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_latents_of_every_mode_equal_the_vae_on_the_same_pixels(models, mixed_dir, tmp_path, mode):
    config = configure(mixed_dir, tmp_path, random_flip=True, alpha_weight=True, **MODES[mode])
    dataset, pictures, _ = prepare(models, config)
    for index, picture in enumerate(pictures):
        image = Image.open(mixed_dir / f"{index}.png").convert("RGBA")
        if mode == "none":
            fitted = image.resize(picture.size, Image.Resampling.BICUBIC)
        elif mode == "varsize":
            left, top = (round((side - kept) / 2) for side, kept in zip(image.size, picture.size))
            fitted = image.crop((left, top, left + picture.size[0], top + picture.size[1]))
        else:
            fitted = ImageOps.fit(image, picture.size, Image.Resampling.BICUBIC)
        for flip in (0, 1):
            expected = ImageOps.mirror(fitted) if flip else fitted
            pixels = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected)
            latents = dataset.latents.sample(index, 0, flip, None)
            if index != 3:  # there resizing and laying on white are done in the other order
                assert (latents - encode_by_hand(models, pixels).mean[0] * 0.7).abs().max() < 1e-5, (index, flip)
            assert latents.shape[1:] == (picture.size[1] // 8, picture.size[0] // 8)
            alpha = np.asarray(expected.getchannel("A"), np.float32)
            cells = alpha.reshape(latents.shape[1], 8, latents.shape[2], 8).mean((1, 3)) / 255
            weights = dataset.latents.alpha_weights(index, 0, flip).numpy()[0]
            assert np.abs(weights - alpha_weights(cells)).max() < 1e-5
    flips = [one(dataset, epoch, 1)["latents"] for epoch in range(20)]
    both = [dataset.latents.sample(1, 0, flip, None)[None] for flip in (0, 1)]
    found = [[torch.equal(latents, other) for other in both].index(True) for latents in flips]
    assert set(found) == {0, 1} and not torch.equal(*both)


def test_weights_of_clear_pictures_beside_others(models, mixed_dir, tmp_path):
    dataset, _, _ = prepare(models, configure(mixed_dir, tmp_path, alpha_weight=True))
    weights = dataset.__getitems__(Batch(0, 0, [2, 3], [0.5, 0.5]))["weights"]
    assert (weights[0] == 0.5).all() and weights[1].mean() == pytest.approx(0.5) and weights[1].min() == 0
    assert weights[1, 0, -1, 0] > weights[1, 0, 0, 0]  # below it is opaque


@pytest.mark.parametrize("sampling", ["once", "deterministic", "random"])
def test_latent_sampling(models, images_dir, tmp_path, sampling):
    dataset, _, _ = prepare(models, configure(images_dir, tmp_path, latent_sampling=sampling))
    drawn = torch.stack([one(dataset, epoch, 0)["latents"][0] for epoch in range(300)])
    distribution = encode_by_hand(models, Image.open(images_dir / "0.png"))
    mean, std = distribution.mean[0] * 0.7, distribution.std[0] * 0.7
    if sampling == "random":
        assert ((drawn.mean(0) - mean) / std).abs().max() < 0.3 and (drawn.std(0) / std).mean() == pytest.approx(
            1, abs=0.02
        )
        assert torch.equal(drawn[7], one(dataset, 7, 0)["latents"][0])
    else:
        assert all(torch.equal(latents, drawn[0]) for latents in drawn)
        deviation = ((drawn[0] - mean) / std).std()
        assert deviation == pytest.approx(1, abs=0.2) if sampling == "once" else deviation < 1e-3


def test_random_crops_are_as_many_as_said_and_lie_within(models, mixed_dir, tmp_path):
    config = configure(mixed_dir, tmp_path, crop="random", crop_variants=3)
    dataset, pictures, _ = prepare(models, config)
    drawn = [one(dataset, epoch, 2)["latents"] for epoch in range(40)]  # 64 x 128
    different = [latents for i, latents in enumerate(drawn) if not any(torch.equal(latents, o) for o in drawn[:i])]
    assert len(different) == 3
    assert all(torch.equal(one(dataset, epoch, 0)["latents"], one(dataset, 0, 0)["latents"]) for epoch in range(20))
    picture = np.asarray(Image.open(mixed_dir / "2.png"), np.float32).transpose(2, 0, 1) / 127.5 - 1
    windows = [torch.from_numpy(picture[:, y : y + 64]) for y in range(65)]
    with torch.no_grad():
        encoded = models.vae.encode(torch.stack(windows)).latent_dist.mean * 0.7
    for latents in different:  # a crop between two rows of pixels is near the one at the nearest row
        nearest = (encoded - latents).abs().amax((1, 2, 3)).min()
        assert nearest < 0.5 * encoded.std()


@pytest.fixture
def counted(models):
    """What goes through the VAE's encoder and the text encoder: {"images": n, "prompts": n}."""
    counts = {"images": 0, "prompts": 0}

    def count(name):
        return lambda module, args: counts.__setitem__(name, counts[name] + len(args[0]))

    text_layer = next(module for name, module in models.text_encoders[0].named_modules() if name.endswith("layers.0"))
    hooks = [
        models.vae.encoder.register_forward_pre_hook(count("images")),
        text_layer.register_forward_pre_hook(count("prompts")),
    ]
    yield counts
    for hook in hooks:
        hook.remove()


def test_copies_of_a_picture_draw_on_their_own(models, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    shutil.copy(folder / "0.png", folder / "0 again.png")
    dataset, pictures, _ = prepare(models, configure(folder, tmp_path))
    first, again = (one(dataset, 0, index) for index in (0, 1))
    assert pictures[0].sha256 == pictures[1].sha256 and torch.equal(first["latents"], again["latents"])
    assert not torch.equal(first["noise"], again["noise"])


def test_the_place_within_a_run_is_kept():
    before = EpochBatchSampler(sized([(64, 64)] * 10), 4, seed=0, start=(2, 1))
    after = EpochBatchSampler(sized([(64, 64)] * 10), 4, seed=0)
    after.load_state_dict(before.state_dict())
    assert after.start == (2, 1) and not after.restarts
    replaced = sized([(64, 64)] * 10)
    replaced[3].sha256 = "another"
    for pictures, batch_size in [(sized([(64, 64)] * 13), 4), (replaced, 4), (sized([(64, 64)] * 10), 5)]:
        other = EpochBatchSampler(pictures, batch_size, seed=0)
        other.load_state_dict(before.state_dict())
        assert other.start == (3, 0) and other.restarts and next(iter(other)).epoch == 3


def test_a_second_start_encodes_nothing_and_a_change_what_depends_on_it(models, images_dir, tmp_path, counted):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)

    def start(**options):
        counted.update(images=0, prompts=0)
        prepare(models, configure(folder, tmp_path / "cache", **options))
        return counted["images"], counted["prompts"]

    assert len({(folder / f"{i}.txt").read_text() for i in range(8)}) == 8
    assert start() == (8, 8)
    assert start() == (0, 0)
    assert start(latent_sampling="random", alpha_weight=True, alpha_background="black", seed=9) == (0, 0)
    assert start(random_flip=True) == (8, 0)
    assert start(caption_dropout=0.1) == (0, 1)
    for i in range(3):
        draw(random_scene(random.Random(50 + i)), size=64).save(folder / f"-{i} new {i}.png")
    assert start() == (3, 3)
    tags = {"tag_dropout": 0.5, "caption_variants": 3, "latent_sampling": "once"}
    start(**tags)
    draw(random_scene(random.Random(60)), size=64).save(folder / "- first of all.png")
    assert start(**tags) in [(1, 1), (1, 2)]  # its own prompts: with the one tag and without
    (folder / "- first of all.png").unlink()
    (folder / "3.png").rename(folder / "moved.png")
    (folder / "3.txt").rename(folder / "moved.txt")
    assert start() == (0, 0)
    (folder / "4.txt").write_text("another caption")
    assert start() == (0, 1)
    draw(random_scene(random.Random(70)), size=64).save(folder / "5.png")
    assert start() == (1, 0)
    assert start(resolution="32") == (11, 0)
    assert start(shuffle_tags=True) == (0, 0)  # those are encoded at each step
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
        assert start()[0] == 0 and counted["prompts"] == 11
        weight[0, 0] = before
    assert start() == (0, 0)


def test_what_was_encoded_before_a_stop_is_kept(models, images_dir, tmp_path, counted, monkeypatch):
    monkeypatch.setattr("hypernet.data.arrow_cache.PART_SECONDS", 0)  # a file for every row
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 1)  # an image at a time
    config = configure(images_dir, tmp_path)
    left = itertools.count(-5)

    def stop(*_):
        if next(left) == 0:
            raise KeyboardInterrupt

    with models.vae.encoder.register_forward_pre_hook(stop), pytest.raises(KeyboardInterrupt):
        prepare(models, config)
    counted.update(images=0)
    dataset, _, _ = prepare(models, config)
    assert counted["images"] in (3, 4) and len(dataset) == 8  # the fifth may have been on its way to the disk
    for damage in (lambda data: data[:100], lambda data: bytes(255 - byte for byte in data), lambda data: b""):
        for path in tmp_path.glob("latents-*/*.arrow"):
            path.write_bytes(damage(path.read_bytes()))  # a disk that lies
        counted.update(images=0)
        prepare(models, config)
        assert counted["images"] == 8


def test_no_damage_to_a_cache_file_ends_a_run(tmp_path):
    features = {"numbers": datasets.List(datasets.Value("float32"))}
    RowCache(tmp_path, features).fill(
        {f"key {i}": i for i in range(50)},
        lambda items: ({"key": key, "numbers": [float(i)] * 20} for key, i in items),
        "Writing",
        "rows",
    )
    (file,) = tmp_path.glob("*.arrow")
    whole, rng = file.read_bytes(), random.Random(0)
    assert RowCache(tmp_path, features).positions(["key 7", "none"]).tolist() == [7, -1]
    for _ in range(100):
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        file.write_bytes(data)
        RowCache(tmp_path, features).positions([f"key {i}" for i in range(50)])


def test_images_go_through_the_vae_in_batches(models, images_dir, tmp_path):
    sizes = []
    with models.vae.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0]))):
        prepare(models, configure(images_dir, tmp_path))
    assert sizes == [8] and PIXELS_AT_ONCE["cpu"] == 512 * 512


def test_a_vae_that_overflows_is_run_in_float32(models_dir, images_dir, tmp_path, capsys):
    models = open_models(models_dir / "epsilon")
    with torch.no_grad():
        models.vae.encoder.conv_in.weight *= 1e6
    assert not encode_images(models, torch.ones(1, 3, 64, 64), torch.float16).isfinite().all()
    dataset, _, _ = prepare(models, configure(images_dir, tmp_path), torch.float16)
    assert capsys.readouterr().out == "The VAE overflows in float16; images are encoded in float32\n"
    latents = encode_by_hand(models, Image.open(images_dir / "0.png")).mean[0] * 0.7
    assert (dataset.latents.sample(0, 0, 0, None) - latents).abs().max() < 1e-5
    with torch.no_grad():
        models.vae.encoder.conv_in.weight[0] = torch.nan
    with pytest.raises(UserError, match="epsilon: VAE: it gives NaN even in float32"):
        prepare(models, configure(images_dir, tmp_path), torch.float16)


def test_files_that_cannot_be_used_are_named(images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    whole = (folder / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.webp").write_bytes(b"<html>")
    Image.new("1", (11_000, 10_000)).save(folder / "huge.png")
    config = configure(folder, tmp_path / "cache")
    for _ in range(2):  # the second time without opening them again
        pictures, problems = index_images(open_image_source(config), config, 8)
        assert len(pictures) == 8
        assert [problem.rpartition("/")[2] for problem in problems][1:] == [
            "empty.jpg: it is empty",
            "huge.png: 11000x10000 are too many pixels",
            "page.webp: it is no image",
        ]
        assert "cut.png: image file is truncated" in problems[0]
    for path in folder.glob("?.png"):
        path.unlink()
    with pytest.raises(UserError, match="none of its 4 images can be used; .*cut.png: image file is truncated"):
        index_images(open_image_source(config), config, 8)


def sized(sizes):
    return [ImageRecord(row, f"{row:x}", *size, False, size) for row, size in enumerate(sizes)]


def epochs(batches, count):
    """Per epoch the batches as they are yielded."""
    found = {}
    for batch in batches:
        if batch.epoch == count:
            return [found[epoch] for epoch in range(count)]
        found.setdefault(batch.epoch, []).append(batch)


def test_every_image_once_per_epoch_in_a_new_order():
    batches = EpochBatchSampler(sized([(64, 64)] * 10), 4, seed=0)
    drawn = epochs(batches, 3)
    assert len(batches) == 3
    for epoch in drawn:
        assert [len(batch.indices) for batch in epoch] == [4, 4, 2]
        assert sorted(index for batch in epoch for index in batch.indices) == list(range(10))
        assert [batch.epoch_step for batch in epoch] == [0, 1, 2]
        assert all(batch.shares == [1 / len(batch.indices)] * len(batch.indices) for batch in epoch)
    assert drawn[0] != drawn[1] != drawn[2]
    later = EpochBatchSampler(sized([(64, 64)] * 10), 4, seed=0, start=(1, 1))
    assert list(itertools.islice(later, 5)) == [*drawn[1][1:], *drawn[2]]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_sizes_never_mix_and_processes_keep_step(processes):
    rng = random.Random(0)
    sizes = [rng.choice([(64, 64), (64, 128), (128, 64), (96, 96)]) for _ in range(41)] + [(8, 8)]
    shards = [
        epochs(EpochBatchSampler(sized(sizes), 3, seed=1, processes=processes, process=process), 3)
        for process in range(processes)
    ]
    for epoch in range(3):
        seen = []
        steps = list(zip(*(shard[epoch] for shard in shards), strict=True))
        assert len(steps) == sum(-(-sizes.count(size) // (3 * processes)) for size in set(sizes))
        for step in steps:
            assert len({sizes[index] for batch in step for index in batch.indices}) == 1
            assert len({len(batch.indices) for batch in step}) == 1 and 1 <= len(step[0].indices) <= 3
            counting = [(i, share) for batch in step for i, share in zip(batch.indices, batch.shares) if share]
            assert all(share == processes / len(counting) for _, share in counting)
            seen += [index for index, _ in counting]
        assert sorted(seen) == list(range(42))
    orders = [[sizes[batch.indices[0]] for batch in epoch] for epoch in shards[0]]
    assert orders[0] != orders[1]


def test_prompts_for_which_there_is_no_room_are_encoded_at_each_step(models, images_dir, tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=8 * 32 * 12 * 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    dataset, _, _ = prepare(models, configure(images_dir, tmp_path))
    assert not dataset.is_cached and "8 prompts would take 0.0 GB in the cache" in capsys.readouterr().out
    monkeypatch.undo()
    dataset, _, _ = prepare(models, configure(images_dir, tmp_path))
    assert dataset.is_cached


def test_batches_of_prompts_that_have_no_end(models, mixed_dir, tmp_path):
    dataset, _, _ = prepare(models, configure(mixed_dir, tmp_path, shuffle_tags=True, keep_tags=1))
    prompts = {tuple(dataset.__getitems__(Batch(epoch, 0, [0, 2], [0.5, 0.5]))["prompts"]) for epoch in range(30)}
    assert prompts == {("a cat, red, blue", "picture 2"), ("a cat, blue, red", "picture 2")}
    item = one(dataset, 0, 0)
    assert not dataset.is_cached and "conditions" not in item
    live = dataset.conditions(item)["encoder_hidden_states"]
    dataset, _, _ = prepare(models, configure(mixed_dir, tmp_path, shuffle_tags=True, caption_variants=2))
    assert one(dataset, 0, 0)["conditions"]["encoder_hidden_states"].shape == live.shape == (1, 32, 12)
