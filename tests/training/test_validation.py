"""Held-out images: which they are, and their loss against a plain re-computation with diffusers' own pieces."""

import copy
import dataclasses
import hashlib
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image

import hypernet
from examples import prepare
from hypernet.cli.training_options import parse_config
from hypernet.data.image_index import ImageRecord, index_images
from hypernet.data.image_source import ImageSource, open_image_source
from hypernet.data.validation_split import _families, encode_validation, open_validation_folder, split_validation
from hypernet.training.perturbation import PER_LAYER, Perturbation
from hypernet.training.validation import ValidationLoss
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import derive_seed
from tests.helpers.tiny_models import TINY_WIDTHS, open_models
from tests.modeling.test_attachment import with_hooks


def opened(models_dir, images_dir, tmp_path, *flags, model="epsilon"):
    needed = {"pretrained_model_name_or_path": models_dir / model, "train_data_dir": images_dir}
    needed |= {"resolution": 64, "cache_dir": tmp_path / "cache", "output_dir": tmp_path / "run"}
    config = parse_config([*(f"--{key}={value}" for key, value in needed.items()), *flags])
    source = open_image_source(config)
    return config, source, index_images(source, config, 8)[0]


def test_the_share_depends_on_the_images_alone(models_dir, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    config, source, pictures = opened(models_dir, folder, tmp_path, "--validation_split=0.3", "--seed=1")
    _, held, kept = split_validation(source, open_validation_folder(config), pictures, config, 8)
    assert len(held) == 2 and sorted([*held, *kept], key=lambda picture: picture.row) == pictures

    for i in range(8):
        shutil.copy(folder / f"{i}.png", folder / f"copy {i}.png")  # copies stay on their side
    config, source, pictures = opened(models_dir, folder, tmp_path, "--validation_split=0.3", "--seed=2")
    _, again, rest = split_validation(source, open_validation_folder(config), pictures, config, 8)
    assert {picture.sha256 for picture in again} == {picture.sha256 for picture in held} and len(again) == 4
    assert not {picture.sha256 for picture in again} & {picture.sha256 for picture in rest}

    before = [kept[0].sha256]  # what a run has begun with stays, whatever the share would choose now
    _, again, rest = split_validation(source, open_validation_folder(config), pictures, config, 8, before)
    assert {picture.sha256 for picture in again} == set(before) and len(again) + len(rest) == 16


def test_parts_and_mirrored_copies_of_a_picture_stay_together(models_dir, images_dir, tmp_path):
    raw, folder = tmp_path / "raw", tmp_path / "prepared"
    raw.mkdir()
    for i in range(8):
        with Image.open(images_dir / f"{i}.png") as image:
            image.resize((64, 200)).save(raw / f"{i}.png")  # in four parts
    prepare.main([str(raw), str(folder), "--size=64", "--split", "--flip", "--sheet_images=0"])
    config, source, pictures = opened(models_dir, folder, tmp_path, "--validation_split=0.2")
    assert len(pictures) == 64

    def named(pictures):
        return {source.label(picture.row).split("-")[0] for picture in pictures}

    def split(config):
        _, held, kept = split_validation(source, open_validation_folder(config), pictures, config, 8)
        assert sorted([*held, *kept], key=lambda picture: picture.row) == pictures
        return held, kept

    held, kept = split(config)
    assert not named(held) & named(kept) and len(held) == 8  # a fifth is 13; two pictures would be 16
    with open(folder / "prepare.jsonl", "ab") as record:  # a run of prepare.py that was killed
        record.write(b'{"source": "9.png", "fil')
    assert split(config)[0] == held
    assert len(split(dataclasses.replace(config, validation_split=0.02))[0]) == 8  # less than a picture is none
    assert len(split(dataclasses.replace(config, validation_split=0.98))[1]) == 8

    # the run began with two of a picture's eight parts, the others were made later: they are on neither side
    began = [picture.sha256 for picture in held[:2]]
    _, still, rest = split_validation(source, None, pictures, config, 8, began)
    assert still == held[:2] and rest == kept
    assert source.notes[-1] == "left out: 6 that are made of the same pictures as those that are held out"
    with pytest.raises(UserError, match="all other images are made of the pictures that are held out; add images"):
        split_validation(source, None, held, config, 8, began)

    (folder / "prepare.jsonl").unlink()  # without it nothing tells that they belong together
    held, kept = split(config)
    assert len(held) == 13 and named(held) & named(kept)


def test_families_of_images(tmp_path):
    """Made up: images are what their records and their bytes say, wherever the records lie."""

    def families(files: dict[str, str], records: dict[str, dict]):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        for name, made in records.items():
            lines = [json.dumps({"source": source, "files": made[source]}, ensure_ascii=False) for source in made]
            (tmp_path / name / "prepare.jsonl").write_text("\n".join([*lines, '{"files": ["x.png"]}', "[]", "{"]))
        paths = [str(tmp_path / name) for name in files]
        images = datasets.Dataset.from_dict({"image": [{"path": path} for path in paths]})
        source = ImageSource("--train_data_dir", images, [("",)] * len(paths), is_folder=True)
        pictures = [ImageRecord(row, text, 8, 8, False, (8, 8)) for row, text in enumerate(files.values())]
        return sorted("".join(sorted(family)) for family in _families(source, pictures))

    # a copy outside of the record ("0"), and two pictures that share a part ("c"), join what they are copies of
    files = {"0.png": "a", "cat-1.png": "a", "cat-2.png": "b", "dog-1.png": "c", "dog-2.png": "d", "fox-1.png": "c"}
    made = {"cat.jpg": ["cat-1.png", "cat-2.png"], "dog.jpg": ["dog-1.png", "dog-2.png"]}
    made |= {"fox.jpg": ["fox-1.png", "fox\u2028-2.png"]}
    assert families({**files, "fox\u2028-2.png": "e", "x.png": "f", "y.png": "g"}, {"": made}) == [
        "ab",
        "cde",
        "f",
        "g",
    ]
    # the nearest record counts, and pictures of two records are two, whatever they are called
    records = {f"more/{i}": {"1.jpg": ["deep/1.png", "2.png"]} for i in "pq"}
    inner = {f"more/{i}/{name}": f"{i}{name[0]}" for i in "pq" for name in ("deep/1.png", "2.png")}
    assert families(inner, records) == ["p2pd", "q2qd"]


def test_images_of_a_folder_of_their_own(models_dir, images_dir, mixed_dir, tmp_path):
    folder = tmp_path / "held"
    shutil.copytree(mixed_dir, folder)
    shutil.copy(images_dir / "0.png", folder / "trained on.png")
    config, source, pictures = opened(models_dir, images_dir, tmp_path, f"--validation_data_dir={folder}")
    held_source, held, kept = split_validation(source, open_validation_folder(config), pictures, config, 8)
    assert len(held) == 6 and kept == pictures
    assert (
        held_source.notes[-1].startswith("1 images of --validation_data_dir") and "trained on" in held_source.notes[-1]
    )
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(images_dir / "0.png", folder)
    with pytest.raises(UserError, match="every image in it is trained on, too"):
        split_validation(source, open_validation_folder(config), pictures, config, 8)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--validation_split=1"], "--validation_split 1.0: a share, from 0 to below 1"),
        (["--validation_split=0.99"], "--validation_split 0.99: of 8 different images nothing would be left"),
        (["--validation_data_dir={images}/sub"], "it lies in --train_data_dir, all of which is trained on"),
        (["--validation_split=0.1", "--validation_data_dir=x"], "--validation_split 0.1: choose it or"),
        (["--validation_data_dir=x"], "--validation_data_dir x: there is no such folder"),
        (["--validation_loss_steps=5"], "--validation_loss_steps 5: it belongs to --validation_split"),
    ],
)
def test_mistakes_get_one_line(models_dir, images_dir, tmp_path, flags, message):
    with pytest.raises(UserError, match=message) as error:
        flags = [flag.format(images=images_dir) for flag in flags]
        config, source, pictures = opened(models_dir, images_dir, tmp_path, *flags)
        split_validation(source, open_validation_folder(config), pictures, config, 8)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["epsilon", "v_prediction"])
def test_the_loss_equals_a_plain_recomputation(models_dir, images_dir, tmp_path, model):
    # what disturbs training does not reach the held-out images
    flags = ["--validation_split=0.3", "--random_flip", "--latent_sampling=random", "--caption_dropout=0.9", "--seed=4"]
    config, source, pictures = opened(models_dir, images_dir, tmp_path, *flags, model=model)
    held_source, held, _ = split_validation(source, open_validation_folder(config), pictures, config, 8)
    models = open_models(models_dir / model)
    hypernetwork = hypernet.Hypernetwork(TINY_WIDTHS, weight_init="kaiming_normal", activation="mish").train()
    unet_with_hypernetwork = hypernet.HypernetworkUNet(models.unet, hypernetwork)
    dataset = encode_validation(models, held_source, held, config, torch.float32)
    held_out = ValidationLoss(dataset, models, Accelerator(cpu=True), batch_size=3)
    state = torch.get_rng_state()
    ours, base = held_out.measure(unet_with_hypernetwork), held_out.measure_base(unet_with_hypernetwork)
    assert torch.equal(torch.get_rng_state(), state) and hypernetwork.training
    assert ours == held_out.measure(unet_with_hypernetwork)  # paired: nothing is drawn anew

    pipe = StableDiffusionPipeline.from_pretrained(models_dir / model, dtype=torch.float32)
    plain = plain_losses(pipe, [images_dir / held_source.label(picture.row) for picture in held], None)
    with_it = plain_losses(pipe, [images_dir / held_source.label(picture.row) for picture in held], hypernetwork)
    assert base == pytest.approx(plain.mean().item(), abs=1e-5)
    assert ours["val_loss"] == pytest.approx(with_it.mean().item(), abs=1e-5)
    bands = [ours[f"val_loss/{low}-{low + 249}"] for low in (0, 250, 500, 750)]
    assert bands == pytest.approx(with_it.mean(0).view(4, 2).mean(1).tolist(), abs=1e-5)


def plain_losses(pipe, files, hypernetwork):
    """(images, 8): the loss at the middles of eighths of the schedule, by hand."""
    scheduler, rows = DDPMScheduler.from_config(pipe.scheduler.config), []
    unet = pipe.unet if hypernetwork is None else with_hooks(copy.deepcopy(pipe.unet), [(hypernetwork.eval(), 1.0)])
    for file in files:
        pixels = np.asarray(Image.open(file).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            latents = pipe.vae.encode(torch.from_numpy(pixels)).latent_dist.mode() * pipe.vae.config.scaling_factor
            text, _ = pipe.encode_prompt(file.with_suffix(".txt").read_text(), "cpu", 1, False)
        sha256, losses = hashlib.sha256(file.read_bytes()).hexdigest(), []
        for i, timestep in enumerate([62, 187, 312, 437, 562, 687, 812, 937]):
            generator = torch.Generator().manual_seed(derive_seed("held out", sha256, i))
            noise, at = torch.randn(latents.shape[1:], generator=generator)[None], torch.tensor([timestep])
            target = noise
            if scheduler.config.prediction_type == "v_prediction":
                target = scheduler.get_velocity(latents, noise, at)
            noisy = scheduler.add_noise(latents, noise, at)
            with torch.no_grad():
                prediction = unet(noisy, at, text).sample
            losses.append(F.mse_loss(prediction, target))
        rows.append(torch.stack(losses))
    return torch.stack(rows)


def test_the_effect_is_the_share_that_is_added(models_dir):
    models = open_models(models_dir / "epsilon")
    hypernetwork = hypernet.Hypernetwork([12, 32], weight_init="kaiming_normal", dropout_structure=[0, 0.5, 0]).train()
    contexts, hooks = {}, []
    for name, layer in models.unet.named_modules():
        if name.endswith("to_k"):
            hooks.append(
                layer.register_forward_pre_hook(
                    lambda module, args: contexts.setdefault(args[0].shape[-1], []).append(args[0].flatten(0, 1))
                )
            )
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 20, 12)
    with torch.no_grad():
        models.unet(latents, torch.tensor([5]), text)
    for hook in hooks:
        hook.remove()
    unet_with_hypernetwork = hypernet.HypernetworkUNet(models.unet, hypernetwork)
    effect = Perturbation(models.unet, latents, torch.tensor([5]), {"encoder_hidden_states": text})
    measured = effect.measure(hypernetwork)
    assert hypernetwork.training and sorted(measured) == ["effect/12", "effect/32"]
    hypernetwork.eval()
    for width in (12, 32):
        spread = [c[torch.linspace(0, len(c) - 1, min(PER_LAYER, len(c))).long()] for c in contexts[width]]
        x = torch.cat(spread)
        with torch.no_grad():
            moved = torch.cat([part - x for part in hypernetwork(x[None])], 1)
        assert measured[f"effect/{width}"] == pytest.approx((moved.norm() / torch.cat([x, x]).norm()).item(), rel=1e-5)
    assert unet_with_hypernetwork(latents, torch.tensor([5]), text).shape == latents.shape  # still attached at strength 1
