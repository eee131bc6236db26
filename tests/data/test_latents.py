"""Latents against the VAE called by hand on the same pixels."""

import itertools
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from hypernet.config import TrainingConfig
from hypernet.data.image_index import ImageRecord
from hypernet.data.image_io import alpha_weights
from hypernet.data.latents import PIXELS_AT_ONCE, crops_of, unique_ids
from hypernet.stable_diffusion.model import encode_images
from hypernet.utils.errors import UserError
from tests.helpers.encoding import configure, encode, encode_by_hand, one
from tests.helpers.processes import run_processes
from tests.helpers.tiny_models import open_models

MODES = {
    "center": {},
    "none": {"crop": "none"},
    "wide": {"resolution": "96x64"},
    "buckets": {"aspect_buckets": True, "resolution": "128"},
    "upscaled": {"aspect_buckets": True, "resolution": "128", "bucket_upscale": True},
    "varsize": {"varsize": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_latents_equal_the_vae_on_the_same_pixels(epsilon_models, mixed_dir, tmp_path, mode):
    config = configure(mixed_dir, tmp_path, random_flip=True, alpha_weight=True, **MODES[mode])
    dataset, records = encode(epsilon_models, config)
    for index, record in enumerate(records):
        image = Image.open(mixed_dir / f"{index}.png").convert("RGBA")
        if mode == "none":
            fitted = image.resize(record.size, Image.Resampling.BICUBIC)
        elif mode == "varsize":
            left, top = (round((side - kept) / 2) for side, kept in zip(image.size, record.size))
            fitted = image.crop((left, top, left + record.size[0], top + record.size[1]))
        else:
            fitted = ImageOps.fit(image, record.size, Image.Resampling.BICUBIC)
        for flip in (0, 1):
            expected = ImageOps.mirror(fitted) if flip else fitted
            pixels = Image.alpha_composite(Image.new("RGBA", expected.size, "white"), expected)
            latents = dataset.latents.sample(index, 0, flip, None)
            if index != 3:  # transparent: here it is resized before it is composited
                by_hand = encode_by_hand(epsilon_models, pixels).mean[0] * 0.7
                assert (latents - by_hand).abs().max() < 1e-5, (index, flip)
            assert latents.shape[1:] == (record.size[1] // 8, record.size[0] // 8)
            alpha = np.asarray(expected.getchannel("A"), np.float32)
            cells = alpha.reshape(latents.shape[1], 8, latents.shape[2], 8).mean((1, 3)) / 255
            weights = dataset.latents.alpha_weights(index, 0, flip).numpy()[0]
            assert np.abs(weights - alpha_weights(cells)).max() < 1e-5
    flips = [one(dataset, epoch, 1)["latents"] for epoch in range(20)]
    both = [dataset.latents.sample(1, 0, flip, None)[None] for flip in (0, 1)]
    found = [[torch.equal(latents, other) for other in both].index(True) for latents in flips]
    assert set(found) == {0, 1} and not torch.equal(*both)


@pytest.mark.parametrize("sampling", ["once", "deterministic", "random"])
def test_latent_sampling(epsilon_models, images_dir, tmp_path, sampling):
    dataset, _ = encode(epsilon_models, configure(images_dir, tmp_path, latent_sampling=sampling))
    samples = torch.stack([one(dataset, epoch, 0)["latents"][0] for epoch in range(300)])
    distribution = encode_by_hand(epsilon_models, Image.open(images_dir / "0.png"))
    mean, std = distribution.mean[0] * 0.7, distribution.std[0] * 0.7
    if sampling == "random":
        assert ((samples.mean(0) - mean) / std).abs().max() < 0.3
        assert (samples.std(0) / std).mean() == pytest.approx(1, abs=0.02)
        assert torch.equal(samples[7], one(dataset, 7, 0)["latents"][0])
    else:
        assert all(torch.equal(latents, samples[0]) for latents in samples)
        deviation = ((samples[0] - mean) / std).std()
        assert deviation == pytest.approx(1, abs=0.2) if sampling == "once" else deviation < 1e-3


def test_random_crops_number_crop_variants_and_lie_within_the_image(epsilon_models, mixed_dir, tmp_path):
    dataset, _ = encode(epsilon_models, configure(mixed_dir, tmp_path, crop="random", crop_variants=3))
    sampled = [one(dataset, epoch, 2)["latents"] for epoch in range(40)]  # an image of 64 x 128
    different = [latents for i, latents in enumerate(sampled) if not any(torch.equal(latents, o) for o in sampled[:i])]
    assert len(different) == 3
    assert all(torch.equal(one(dataset, epoch, 0)["latents"], one(dataset, 0, 0)["latents"]) for epoch in range(20))
    image = np.asarray(Image.open(mixed_dir / "2.png"), np.float32).transpose(2, 0, 1) / 127.5 - 1
    windows = [torch.from_numpy(image[:, y : y + 64]) for y in range(65)]
    with torch.no_grad():
        encoded = epsilon_models.vae.encode(torch.stack(windows)).latent_dist.mean * 0.7
    for latents in different:  # a crop between two rows of pixels is close to that at the nearest row
        nearest = (encoded - latents).abs().amax((1, 2, 3)).min()
        assert nearest < 0.5 * encoded.std()


def test_keys_of_crops_do_not_change():
    """Caches of earlier versions stay valid."""
    opaque, transparent = (ImageRecord(0, "ab", 300, 200, has_alpha, (100, 100)) for has_alpha in (False, True))
    crops = (
        crops_of(opaque, TrainingConfig(random_flip=True))[0] + crops_of(transparent, TrainingConfig(crop="none"))[0]
    )
    assert [crop.key("white") for crop in crops] == [
        "ab/(100, 100)/50.000,0.000,250.000,200.000//",
        "ab/(100, 100)/50.000,0.000,250.000,200.000/flipped/",
        "ab/(100, 100)/0.000,0.000,300.000,200.000//white",
    ]
    assert unique_ids(["a", "b", "a", "a"]) == ["a", "b", "a-1", "a-2"]


def test_encodes_in_batches(epsilon_models, images_dir, tmp_path):
    sizes = []
    with epsilon_models.vae.encoder.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0]))):
        encode(epsilon_models, configure(images_dir, tmp_path))
    assert sizes == [8] and PIXELS_AT_ONCE["cpu"] == 512 * 512


@pytest.mark.parametrize("count", [2, 3])
def test_processes_encode_each_image_once_and_as_one_does(
    epsilon_models, mixed_dir, images_dir, tmp_path, encode_counts, monkeypatch, count
):
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 3 * 64 * 64)  # batches of up to three images
    folder = tmp_path / "images"
    shutil.copytree(mixed_dir, folder)
    shutil.copytree(images_dir, folder / "more")
    one, _ = encode(epsilon_models, configure(folder, tmp_path / "one", varsize=True))
    alone = dict(encode_counts)
    (tmp_path / "several").mkdir()
    config = configure(folder, tmp_path / "several", varsize=True)
    found = run_processes(count, lambda processes: encode(epsilon_models, config, processes=processes)[0])
    assert alone["images"] == 14 and encode_counts == {name: 2 * number for name, number in alone.items()}
    for dataset in found:
        assert dataset.latents.ids == one.latents.ids
        for index in range(14):
            assert torch.equal(dataset.latents.sample(index, 0, 0, None), one.latents.sample(index, 0, 0, None))
            ours, theirs = (each.plain_conditions(index, 1) for each in (dataset, one))
            assert all(torch.equal(ours[key], theirs[key]) for key in ours if torch.is_tensor(ours[key]))


def test_keeps_what_was_encoded_before_a_stop(epsilon_models, images_dir, tmp_path, encode_counts, monkeypatch):
    monkeypatch.setattr("hypernet.data.arrow_cache.PART_SECONDS", 0)  # a file for every row
    monkeypatch.setitem(PIXELS_AT_ONCE, "cpu", 1)  # an image at a time
    config = configure(images_dir, tmp_path)
    left = itertools.count(-5)

    def stop(*_):
        if next(left) == 0:
            raise KeyboardInterrupt

    with epsilon_models.vae.encoder.register_forward_pre_hook(stop), pytest.raises(KeyboardInterrupt):
        encode(epsilon_models, config)
    encode_counts.update(images=0)
    dataset, _ = encode(epsilon_models, config)
    assert encode_counts["images"] in (3, 4) and len(dataset) == 8  # the fifth may have been on its way to the disk
    for damage in (lambda data: data[:100], lambda data: bytes(255 - byte for byte in data), lambda data: b""):
        for path in tmp_path.glob("latents-*/*.arrow"):
            path.write_bytes(damage(path.read_bytes()))
        encode_counts.update(images=0)
        encode(epsilon_models, config)
        assert encode_counts["images"] == 8


def test_switches_to_float32_when_the_vae_overflows(models_dir, images_dir, tmp_path, capsys):
    models = open_models(models_dir / "epsilon")
    with torch.no_grad():
        models.vae.encoder.conv_in.weight *= 1e6
    assert not encode_images(models, torch.ones(1, 3, 64, 64), torch.float16).isfinite().all()
    dataset, _ = encode(models, configure(images_dir, tmp_path), torch.float16)
    (line,) = capsys.readouterr().out.splitlines()
    assert "float16" in line and "float32" in line
    latents = encode_by_hand(models, Image.open(images_dir / "0.png")).mean[0] * 0.7
    assert (dataset.latents.sample(0, 0, 0, None) - latents).abs().max() < 1e-5
    with torch.no_grad():
        models.vae.encoder.conv_in.weight[0] = torch.nan
    with pytest.raises(UserError, match="epsilon.*VAE.*float32"):
        encode(models, configure(images_dir, tmp_path), torch.float16)
