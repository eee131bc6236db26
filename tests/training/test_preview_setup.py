"""Checks of previews against the base model."""

import pytest
from accelerate import Accelerator

from hypernet.config import TrainingConfig
from hypernet.generation.preview_prompts import preview_prompts
from hypernet.training.preview_setup import check_samplers
from hypernet.utils.errors import UserError


@pytest.mark.parametrize(
    "options, named",
    [
        ({"validation_sampler": "LCM", "validation_inference_steps": 60}, "--validation_inference_steps 60: LCM"),
        ({"validation_sampler": "Euler Karras", "validation_inference_steps": 1}, "--validation_inference_steps 1"),
    ],
)
def test_refuses_steps_that_a_sampler_does_not_support(epsilon_models, options, named):
    accelerator, slices = Accelerator(cpu=True), epsilon_models.vae.use_slicing
    check_samplers(
        preview_prompts(TrainingConfig(validation_prompt=["a"], validation_sampler="LCM")), epsilon_models, accelerator
    )
    with pytest.raises(UserError, match=named):
        check_samplers(preview_prompts(TrainingConfig(validation_prompt=["a"], **options)), epsilon_models, accelerator)
    assert epsilon_models.vae.use_slicing == slices  # encoding in slices would give other latents
