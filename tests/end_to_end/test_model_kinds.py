"""Every kind of base model: a training step compared with diffusers' own parts, and the whole script on SDXL."""

import csv
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.training_utils import compute_snr
from PIL import Image

import convert_to_webui
import hypernet
from examples import generate
from hypernet.config import TrainingConfig
from hypernet.data.image_index import ImageRecord
from hypernet.data.latents import Crop, crops_of
from hypernet.stable_diffusion.base_model import identify_base_model
from hypernet.stable_diffusion.model_source import ModelSource
from hypernet.utils.hashing import derive_seed
from tests.helpers.references import with_hooks
from tests.helpers.scripts import same_weights, train_here
from tests.helpers.tiny_models import tiny_xl_pipeline

WIDTHS = {"sd2": [12, 16, 32], "epsilon": [12, 16, 32], "xl": [16, 32, 36]}
STEP = ["--max_train_steps=1", "--optimizer=SGD", "--learning_rate=1", "--clip_grad_mode=none", "--logging_steps=1"]
STEP += ["--train_batch_size=3", "--activation=mish", "--weight_init=kaiming_normal", "--seed=3", "--no_guard"]


def reference_step(model_dir, images, sizes, prediction_type, zero_snr=False, gamma=None):
    """Return the first step's loss and the hypernetwork with its gradients; `sizes` are SDXL's time ids by image."""
    pipe = DiffusionPipeline.from_pretrained(model_dir, safety_checker=None)
    changes = {"prediction_type": prediction_type, "rescale_betas_zero_snr": zero_snr}
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, **changes)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.requires_grad_(False)
    torch.manual_seed(3)
    hypernetwork = hypernet.Hypernetwork(WIDTHS[model_dir.name], weight_init="kaiming_normal", activation="mish")
    with_hooks(pipe.unet, [(hypernetwork, 1.0)])
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(derive_seed(3, "order", 0)))[:3]
    losses = []
    for index in order.tolist():
        image = images[index]
        pixels = torch.from_numpy(np.asarray(Image.open(image).convert("RGB"), np.float32)).permute(2, 0, 1) / 127.5 - 1
        latents = pipe.vae.encode(pixels[None]).latent_dist.mode() * pipe.vae.config.scaling_factor
        digest = hashlib.sha256(image.read_bytes()).hexdigest()
        generator = torch.Generator().manual_seed(derive_seed(3, "item", 0, digest))
        noise = torch.randn(latents.shape[1:], generator=generator)[None]
        timestep = torch.randint(1000, (1,), generator=generator)
        prompt = image.with_suffix(".txt").read_text()
        text = pipe.encode_prompt(prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
        added = {"text_embeds": text[2], "time_ids": torch.tensor([sizes[index]])} if sizes else None
        predicted = pipe.unet(scheduler.add_noise(latents, noise, timestep), timestep, text[0], added_cond_kwargs=added)
        target = {"epsilon": noise, "sample": latents}.get(prediction_type)
        target = scheduler.get_velocity(latents, noise, timestep) if target is None else target
        weight = 1.0
        if gamma:
            snr = compute_snr(scheduler, timestep)
            divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[prediction_type]
            weight = snr.clamp(max=gamma) / divisor
        losses.append((weight * (predicted.sample - target).square()).mean())
    loss = sum(losses) / 3
    loss.backward()
    return loss.item(), hypernetwork


@pytest.mark.parametrize(
    "model, flags, options",
    [
        ("sd2", [], {"prediction_type": "v_prediction"}),
        (
            "sd2",
            ["--rescale_betas_zero_snr", "--snr_gamma=5"],
            {"prediction_type": "v_prediction", "zero_snr": True, "gamma": 5},
        ),
        ("epsilon", ["--snr_gamma=1"], {"prediction_type": "epsilon", "gamma": 1}),
        ("epsilon", ["--prediction_type=sample", "--snr_gamma=2"], {"prediction_type": "sample", "gamma": 2}),
        ("xl", [], {"prediction_type": "epsilon"}),
        ("xl", ["--prediction_type=v_prediction"], {"prediction_type": "v_prediction"}),
    ],
)
def test_a_step_equals_the_reference(models_dir, images_dir, tmp_path, model, flags, options):
    train_here(models_dir, images_dir, tmp_path / "run", *STEP, *flags, model=model)
    images = sorted(images_dir.glob("*.png"))
    sizes = [(64.0, 64.0, 0.0, 0.0, 64.0, 64.0)] * len(images) if model == "xl" else None
    loss, before = reference_step(models_dir / model, images, sizes, **options)
    with open(tmp_path / "run" / "hypernetwork_loss.csv") as file:
        row = next(csv.DictReader(file))
    assert float(row["loss"]) == pytest.approx(loss, abs=1e-5)
    after = dict(hypernet.load(tmp_path / "run").named_parameters())
    for name, weight in before.named_parameters():
        torch.testing.assert_close(weight.detach() - after[name].detach(), weight.grad, rtol=1e-4, atol=1e-5)


def test_sdxl_gets_the_sizes_and_corners_of_crops():
    """The corner counts in pixels of the resized image, from the left as shown, mirrored or not."""
    config = TrainingConfig(crop="center", random_flip=True)
    image = ImageRecord(0, "ab", 300, 200, False, (100, 100))  # resized to 150 x 100, 25 are cut off on each side
    plain, mirrored = (crop.time_ids().tolist() for crop in crops_of(image, config)[0])
    assert plain == mirrored == [200, 300, 0, 25, 100, 100]
    wide = ImageRecord(0, "ab", 300, 200, False, (128, 64))  # resized to 128 x 85.3, 10.7 are cut off at the top
    assert crops_of(wide, config)[0][0].time_ids().tolist() == [200, 300, 11, 0, 64, 128]
    assert Crop(image, (0, 0, 200, 200), False).time_ids().tolist() == [200, 300, 0, 0, 100, 100]
    assert Crop(image, (0, 0, 200, 200), True).time_ids().tolist() == [200, 300, 0, 50, 100, 100]
    assert Crop(image, (0, 0, 300, 200), True).time_ids().tolist() == [200, 300, 0, 0, 100, 100]  # squeezed


def test_the_whole_script_on_sdxl(models_dir, mixed_dir, tmp_path):
    """Train, preview, resume, convert, generate; a resumed run equals an uninterrupted one."""
    flags = ["--max_train_steps=4", "--learning_rate=1e-3", "--train_batch_size=2", "--checkpointing_steps=2"]
    flags += ["--name=ink", "--aspect_buckets", "--random_flip", "--caption_dropout=0.3", "--validation_split=0.2"]
    flags += ["--validation_prompt=a cat", "--validation_inference_steps=2", "--validation_steps=2"]
    flags += ["--template=[filewords], by [name], " + "tree " * 40, "--validation_negative_prompt=blue"]
    flags += ["--validation_sampler=Euler a", "--validation_resolution=64x96"]
    whole, resumed = tmp_path / "whole", tmp_path / "ink"
    train_here(models_dir, mixed_dir, whole, *flags, model="xl")
    shutil.copytree(whole, resumed)
    train_here(models_dir, mixed_dir, resumed, *flags, "--resume_from_checkpoint=step-000002", model="xl")
    assert (resumed / "checkpoints" / "abandoned-step-000004").is_dir()
    assert hypernet.load(resumed / "ink.pt").config.widths == [16, 32, 36]
    assert same_weights(whole / "ink.pt", resumed / "ink.pt")
    grids = [Image.open(folder / "previews" / "before_after.png") for folder in (whole, resumed)]
    assert np.array_equal(*map(np.asarray, grids))

    output = ["--output_dir", tmp_path / "generated", "--steps=2", "--size=64", "--hypernetwork_dir", resumed]
    generate.main(["--prompt", "a cat <hypernet:ink-best:0.5>", *map(str, output)])
    assert len(list((tmp_path / "generated").glob("*.png"))) == 1
    convert_to_webui.main([str(resumed), str(tmp_path / "other.safetensors")])
    assert hypernet.load(tmp_path / "other.safetensors").config.name == "other"
    assert json.loads((resumed / "config.json").read_text()).keys() >= {"base_model_name", "base_model_hash"}


@pytest.mark.parametrize("zeros", [True, False])
def test_sdxl_embeds_empty_prompts_as_its_config_says(tmp_path, zeros):
    tiny_xl_pipeline(force_zeros_for_empty_prompt=zeros).save_pretrained(tmp_path)
    assert identify_base_model(ModelSource(str(tmp_path))).zeros_for_empty_prompt == zeros
