"""Batches of images from one model."""

import pytest

from hypernet.generation.generator import GenerationSettings, ImageGenerator, group_into_batches
from hypernet.utils.errors import UserError
from tests.helpers.generation import max_difference, reference_image
from tests.helpers.tiny_models import open_models


def test_refuses_steps_that_a_sampler_does_not_support(models_dir):
    generator = ImageGenerator(open_models(models_dir / "epsilon"))
    for steps, sampler in ((60, "LCM"), (1, "Euler Karras")):
        settings = [GenerationSettings("a", steps=2), GenerationSettings("a", steps=steps, sampler=sampler)]
        with pytest.raises(UserError, match=f"--steps {steps}: {sampler}"):
            list(generator.generate_all(settings))


def test_groups_images_by_hypernetworks_and_settings():
    stacks = ((("a.pt", 1.0),), (("a.pt", 0.5),), ())
    settings = [GenerationSettings("a", seed=seed, hypernetworks=stack) for seed in range(3) for stack in stacks]
    assert group_into_batches(settings, 2) == [[0, 3], [6], [1, 4], [7], [2, 5], [8]]


@pytest.mark.parametrize("model", ["epsilon", "xl"])
def test_images_do_not_depend_on_their_batch(model, models_dir, hypernetworks_dir):
    generator = ImageGenerator(open_models(models_dir / model))
    pipe = generator.pipe
    pipe.set_progress_bar_config(disable=True)
    stack = ((str(hypernetworks_dir / "ink"), 1.0), (str(hypernetworks_dir / "other.pt"), -0.5))
    settings = [
        GenerationSettings(prompt, negative, seed, steps=2, sampler=sampler, hypernetworks=hypernetworks)
        for seed, (prompt, negative) in enumerate([("a cat", ""), ("a red star", ""), ("a star", "blue"), ("", "blue")])
        for sampler in (None, "DPM++ 2M SDE Karras")
        for hypernetworks in (stack, (), stack[:1])
    ]
    alone, together = (dict(generator.generate_all(settings, batch_size)) for batch_size in (1, 3))
    assert sorted(alone) == sorted(together) == list(range(len(settings)))
    assert max(max_difference(alone[i], together[i]) for i in alone) <= 1
    assert not generator.loaded and not hasattr(pipe.unet, "_hypernetworks")
    pipe.scheduler = generator.sampler.schedulers[None]
    for i in (0, 1, 2, 12):
        each = settings[i]
        assert each.sampler is None
        options = {"num_inference_steps": 2, "negative_prompt": each.negative_prompt or None, "guidance_scale": 7.5}
        expected = reference_image(pipe, each.hypernetworks, each.prompt, each.seed, **options)
        assert max_difference(alone[i], expected) <= 1
