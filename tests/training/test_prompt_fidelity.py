"""Prompt fidelity against a plain loop with diffusers' own UNet and scheduler."""

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline

from hypernet.stable_diffusion.text_encoding import encode_prompts
from hypernet.training.prompt_fidelity import ALTERNATIVES, choose_alternatives, prompt_margin
from hypernet.training.shutdown import Interrupted
from hypernet.utils.hashing import derive_seed
from tests.helpers.tiny_models import LONG_PROMPT, open_models

TEXTS = ["a red star", "a blue cat", LONG_PROMPT, ""]  # an image's own prompt, then others; one of several chunks


@pytest.mark.parametrize(
    "prompt, texts, expected",
    [
        ("a cat on blue", ["a fish in a bowl", "a Dog on blue"], ["a Dog on blue", "a fish in a bowl"]),
        ("a cat", ["a cat", "A CAT!", "a black cat", "cat", "cat, a"], [""]),  # parts of one another
        ("a cat", [], [""]),
        ("", ["a cat"], [""]),
        ("a cat", ["", "a dog"], ["a dog"]),
        ("水墨", ["山水", "水墨"], ["山水"]),
        ("a cat", ["b", "d", "c", "a dog", "a dog", "e"], ["a dog", "b", "c"]),  # no duplicates; ties by the alphabet
    ],
)
def test_an_image_is_compared_with_the_most_similar_other_texts(prompt, texts, expected):
    chosen = choose_alternatives(prompt, texts)
    assert chosen == expected and len(chosen) <= ALTERNATIVES
    assert choose_alternatives(prompt, [*reversed(texts)]) == chosen


@pytest.mark.parametrize("model", ["epsilon", "v_prediction", "xl"])
def test_margin_equals_a_plain_loop(models_dir, model):
    models = open_models(models_dir / model)
    embeds = encode_prompts(models, TEXTS)
    latents = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(3))
    ids = torch.tensor([64.0, 96, 0, 0, 64, 96]) if model == "xl" else None
    state = torch.get_rng_state()
    margins = [
        prompt_margin(models.unet, models.scheduler, latents, embeds, ids, seed=5, batch_size=size)
        for size in (1, 3, 8)
    ]
    assert torch.equal(torch.get_rng_state(), state)

    pipeline = StableDiffusionXLPipeline if model == "xl" else StableDiffusionPipeline
    pipe = pipeline.from_pretrained(models_dir / model, dtype=torch.float32)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    errors = torch.zeros(len(TEXTS))
    for level, timestep in ((0.3, 300), (0.45, 450), (0.6, 600)):
        generator = torch.Generator().manual_seed(derive_seed("prompt margin", 5, level))
        noise, time = torch.randn(4, 8, 8, generator=generator)[None], torch.tensor([timestep])
        noisy, target = scheduler.add_noise(latents[None], noise, time), noise
        if scheduler.config.prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents[None], noise, time)
        for i, each in enumerate(embeds):
            more = (
                {} if ids is None else {"added_cond_kwargs": {"text_embeds": each.pooled[None], "time_ids": ids[None]}}
            )
            with torch.no_grad():
                errors[i] += F.mse_loss(pipe.unet(noisy, time, each.tokens[None], **more).sample, target) / 3
    expected = (errors[1:].mean() - errors[0]).item()
    assert abs(expected) > 1e-5
    assert margins == pytest.approx(3 * [expected], abs=1e-6)
    other = prompt_margin(models.unet, models.scheduler, latents, embeds, ids, seed=6, batch_size=8)
    assert other != pytest.approx(expected, abs=1e-6)


def test_a_signal_interrupts_it(epsilon_models):
    def check():
        raise Interrupted

    embeds = encode_prompts(epsilon_models, ["a cat", "a dog"])
    with pytest.raises(Interrupted):
        prompt_margin(epsilon_models.unet, epsilon_models.scheduler, torch.zeros(4, 8, 8), embeds, None, 0, 2, check)
