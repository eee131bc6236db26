"""Encoded images against the VAE and text encoder called by hand; what is encoded when."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from draw import draw, random_scene
from hypernet.captions import read_caption
from hypernet.dataset import EpochBatches, derive_seed, encode_folder, find_images, load_image
from hypernet.errors import UserError
from hypernet.models import load_models


@pytest.fixture(scope="module")
def models(models_dir):
    return load_models(str(models_dir / "epsilon"))


def encode(models, images, cache_dir, templates=("[filewords]",), resolution=64, captions=None):
    config = SimpleNamespace(templates=templates, name="me", resolution=resolution, cache_dir=cache_dir, seed=3)
    return encode_folder(models, images, captions or [read_caption(image) for image in images], config)


def test_items_equal_what_the_models_say(models, images_dir, tmp_path):
    images = find_images(images_dir)
    dataset = encode(models, images, tmp_path, templates=("[filewords]", "art by [name]"))
    item = dataset[(2, 4)]
    pixels = torch.from_numpy(np.array(Image.open(images[4]).convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        latents = models.vae.encode(pixels).latent_dist.mean[0] * 0.7
        texts = [read_caption(images[4]), "art by me"]
        tokens = models.tokenizer(texts, padding="max_length", max_length=32, truncation=True, return_tensors="pt")
        embeds = models.text_encoder(tokens.input_ids)[0]
    generator = torch.Generator().manual_seed(derive_seed(3, "item", 2, 4))
    template = int(torch.randint(2, (), generator=generator))
    assert (item["latents"] - latents).abs().max() < 1e-5
    assert (item["prompt_embeds"] - embeds[template]).abs().max() < 1e-5
    assert torch.equal(item["noise"], torch.randn(4, 8, 8, generator=generator))
    assert item["timesteps"] == torch.randint(0, 1000, (), generator=generator)


def test_a_second_start_encodes_nothing_and_a_change_what_depends_on_it(models, images_dir, tmp_path):
    counts = {"images": 0, "prompts": 0}

    def count(name):
        return lambda module, args: counts.__setitem__(name, counts[name] + len(args[0]))

    text_layers = (module for name, module in models.text_encoder.named_modules() if name.endswith("layers.0"))
    hooks = [
        models.vae.encoder.register_forward_pre_hook(count("images")),
        next(text_layers).register_forward_pre_hook(count("prompts")),
    ]
    images = find_images(images_dir)

    def counted(**options):
        counts.update(images=0, prompts=0)
        encode(models, images, tmp_path, **options)
        return counts["images"], counts["prompts"]

    prompts = len({read_caption(image) for image in images})
    assert counted() == (8, prompts)
    assert counted() == (0, 0)
    assert counted(captions=["a"] * 8) == (0, 1)
    assert counted(resolution=32) == (8, 0)
    weight = models.vae.encoder.conv_in.weight
    with torch.no_grad():
        before = weight[0, 0, 0, 0].item()
        weight[0, 0, 0, 0] += 1e-6
        assert counted() == (8, 0)
        weight[0, 0, 0, 0] = before
    assert counted() == (0, 0)
    for hook in hooks:
        hook.remove()


def test_every_image_once_per_epoch_in_a_new_order():
    batches = EpochBatches(10, 4, seed=0)
    orders = []
    for epoch in range(3):
        batches.epoch = epoch
        drawn = list(batches)
        assert [len(batch) for batch in drawn] == [4, 4, 2] and len(batches) == 3
        orders.append([index for batch in drawn for _, index in batch])
        assert sorted(orders[-1]) == list(range(10)) and {e for batch in drawn for e, _ in batch} == {epoch}
    assert orders[0] != orders[1] != orders[2]
    batches.epoch = 1
    assert [index for batch in batches for _, index in batch] == orders[1]


def test_pictures_are_what_a_viewer_shows(tmp_path):
    picture = draw(random_scene(random.Random(1)), size=64)
    picture.save(tmp_path / "a.png")
    expected = load_image(tmp_path / "a.png", 64)
    assert np.array_equal(expected, np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1)

    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(load_image(tmp_path / "turned.png", 64), expected)

    Image.new("RGBA", (64, 64), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (load_image(tmp_path / "clear.png", 64) == 1).all()

    wide = Image.new("RGB", (192, 64), "black")
    wide.paste(picture, (64, 0))
    wide.save(tmp_path / "wide.png")
    assert np.array_equal(load_image(tmp_path / "wide.png", 64), expected)


def test_folders_that_are_none(tmp_path):
    with pytest.raises(UserError, match="there is no such folder"):
        find_images(tmp_path / "none")
    with pytest.raises(UserError, match="there is no image in it"):
        find_images(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.PNG").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a\.PNG: it cannot be read as an image"):
        find_images(tmp_path)
    (tmp_path / "deep" / "a.PNG").unlink()
    (tmp_path / "deep" / ".hidden.png").write_bytes(b"not an image")
    Image.new("RGB", (70, 64)).save(tmp_path / "deep" / "b.JPEG")
    assert [path.name for path in find_images(tmp_path)] == ["b.JPEG"]
    content = (tmp_path / "deep" / "b.JPEG").read_bytes()
    (tmp_path / "deep" / "b.JPEG").write_bytes(content[: len(content) // 2])  # its head is whole, its body is not
    with pytest.raises(UserError, match=r"b\.JPEG: it cannot be read as an image"):
        find_images(tmp_path)
    with pytest.raises(UserError, match="it is a file"):
        find_images(tmp_path / "deep" / "b.JPEG")
