"""Prior preservation: its loss against the definition, its images, and runs that resume."""

import json

import pytest
import torch

import hypernet
from hypernet.config import TrainingConfig
from hypernet.data.prompts import PromptSampler, read_prior_prompts, without_template_words
from hypernet.modeling.attachment import HypernetworkUNet
from hypernet.stable_diffusion.conditioning import build_conditions, time_ids
from hypernet.training.base_samples import build_previewer
from hypernet.training.loss import snr_weights
from hypernet.training.prior import RECORDED, Prior, prior_prompts
from hypernet.utils.errors import UserError
from tests.helpers.scripts import same_weights, train_here
from tests.helpers.tiny_models import open_models, tiny_hypernetwork
from tests.training.test_preview_scores import WIDTHS, made_run

TEXTS = ["a cat", "a dog on a long road", "a fish"]
FLAGS = ["--activation=mish", "--weight_init=kaiming_normal", "--learning_rate=1e-3", "--prior_weight=0.5"]
FLAGS += ["--validation_inference_steps=2", "--template=[filewords], by [name]", "--train_batch_size=3"]


def made_prior(models, tmp_path, **options):
    options = {"resolution": "64", "cache_dir": str(tmp_path), "validation_inference_steps": 2} | options
    run = made_run(TrainingConfig(**options), models)
    previewer = build_previewer(run, models, TEXTS)
    prior = Prior(run, models, previewer, [previewer.embeds[text] for text in TEXTS])
    prior.generate()
    return prior


@pytest.mark.parametrize("model, gamma", [("epsilon", None), ("epsilon", 5.0), ("xl", None), ("v_prediction", None)])
def test_the_loss_is_the_change_of_the_prediction(models_dir, tmp_path, model, gamma):
    models, plain = open_models(models_dir / model), open_models(models_dir / model)
    prior = made_prior(models, tmp_path, train_batch_size=6, prior_weight=1.0)
    images = build_previewer(prior.run, plain, TEXTS).sample()
    hypernetwork = tiny_hypernetwork(widths=WIDTHS["xl" if model == "xl" else "epsilon"], biases=True)
    combined = HypernetworkUNet(models.unet, hypernetwork)
    table = snr_weights(models.scheduler, gamma) if gamma else None
    loss = prior.loss(combined, combined, (3, 4), table)
    latents, noise, timesteps, numbers = prior.sample((3, 4))
    assert len(numbers) == 3 and torch.equal(latents, torch.stack([images[number][0] for number in numbers]))
    noisy = models.scheduler.add_noise(latents, noise, timesteps)
    expected = 0.0
    for row, number in enumerate(numbers):
        ids = time_ids((64, 64), (0, 0), (64, 64))[None] if model == "xl" else None
        conditions = build_conditions([prior.embeds[number]], ids)
        with torch.no_grad():
            with_it = models.unet(noisy[row : row + 1], timesteps[row], **conditions).sample
            without = plain.unet(noisy[row : row + 1], timesteps[row], **conditions).sample
        weight = 1.0 if table is None else table[timesteps[row]].item()
        expected += weight * (with_it - without).square().mean().item() / 3
    assert expected > 0 and loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert any(weight.grad.abs().max() > 0 for weight in hypernetwork.parameters())


def test_a_hypernetwork_without_effect_keeps_everything(epsilon_models, tmp_path):
    prior = made_prior(epsilon_models, tmp_path, prior_weight=1.0)
    combined = HypernetworkUNet(epsilon_models.unet, hypernet.Hypernetwork(WIDTHS["epsilon"], weight_init="zero"))
    assert prior.loss(combined, combined, (0, 0), None).item() == pytest.approx(0, abs=1e-10)
    hypernet.detach(epsilon_models.unet)
    assert prior.batch_size == 1
    draws = [prior.sample(place) for place in ((0, 0), (0, 1), (0, 0))]
    assert torch.equal(draws[0][1], draws[2][1]) and not torch.equal(draws[0][1], draws[1][1])


@pytest.mark.parametrize(
    "templates, prompt, plain",
    [
        (["[filewords]"], "a cat, by ink", "a cat, by ink"),
        (["[filewords], by [name]"], "a cat, by ink", "a cat"),
        (["[filewords], by [name]"], "a dog", "a dog"),
        (["art by [name] of [filewords]"], "art by ink of a cat", "a cat"),
        (["[filewords] in [folder], [name]", "by [name]"], "a cat, by ink", "a cat"),
        (["[filewords] in [name]"], "a cat in a house", "a cat in a house"),
    ],
)
def test_template_words_are_taken_out(templates, prompt, plain):
    assert without_template_words(templates, prompt, "ink") == plain


def test_prompts_come_from_a_file_or_from_captions_and_previews(tmp_path):
    captions = [("a cat", "cats"), ("a dog",), ("a cat",)]
    prompts = PromptSampler(["1", "2", "3"], captions, ["[filewords], by [name]"], name="ink", seed=0)
    config = TrainingConfig(name="ink")
    assert prior_prompts(config, prompts, ["a fish, by ink", "a dog"]) == ["a fish", "a dog", "a cat"]
    config.prior_prompts = str(tmp_path / "prompts.txt")
    (tmp_path / "prompts.txt").write_text("a house\n\n  a tree \na house\n")
    assert prior_prompts(config, prompts, ["a fish"]) == ["a house", "a tree"]
    (tmp_path / "prompts.txt").write_text("\n")
    with pytest.raises(UserError, match="--prior_prompts"):
        read_prior_prompts(config.prior_prompts)


def test_a_resumed_run_keeps_its_prior(models_dir, images_dir, tmp_path):
    train_here(models_dir, images_dir, tmp_path / "whole", *FLAGS, "--name=run", "--max_train_steps=4")
    train_here(models_dir, images_dir, tmp_path / "run", *FLAGS, "--max_train_steps=2")
    before = json.loads((tmp_path / "run" / "run.json").read_text())[RECORDED]
    changed = ["--validation_guidance_scale=2", "--validation_prompt=a house, by run", "--validation_steps=100"]
    train_here(models_dir, images_dir, tmp_path / "run", *FLAGS, *changed, "--max_train_steps=4")
    assert same_weights(tmp_path / "run", tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "run.json").read_text())[RECORDED] == before
    train_here(
        models_dir, images_dir, tmp_path / "none", "--name=run", *FLAGS, "--prior_weight=0", "--max_train_steps=4"
    )
    assert not same_weights(tmp_path / "none", tmp_path / "whole")
