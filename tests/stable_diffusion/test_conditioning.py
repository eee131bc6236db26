"""The UNet's conditions for a batch of prompts."""

import pytest
import torch

from hypernet.stable_diffusion.conditioning import build_conditions
from hypernet.stable_diffusion.text_encoding import Embeds, encode_prompts
from tests.helpers.tiny_models import LONG_PROMPT, open_models


@pytest.mark.parametrize("name", ["epsilon", "xl"])
def test_a_long_prompt_changes_no_other_image_of_the_batch(models_dir, name):
    """Padding is masked, so the UNet predicts the same for each prompt as it does for it alone."""
    models = open_models(models_dir / name)
    embeds = encode_prompts(models, ["a cat", LONG_PROMPT, ""])
    assert len({len(each.tokens) for each in embeds}) == 2
    latents, timesteps, sizes = torch.randn(3, 4, 8, 8), torch.tensor([5, 500, 900]), torch.randint(64, (3, 6)).float()
    sizes = sizes if name == "xl" else None
    together = models.unet(latents, timesteps, **build_conditions(embeds, sizes)).sample
    for i, each in enumerate(embeds):
        alone = build_conditions([each], None if sizes is None else sizes[i : i + 1])
        assert "encoder_attention_mask" not in alone
        expected = models.unet(latents[i : i + 1], timesteps[i : i + 1], **alone).sample
        torch.testing.assert_close(together[i : i + 1], expected, rtol=0, atol=1e-5)


def test_prompts_of_equal_length_need_no_mask():
    assert set(build_conditions([Embeds(torch.zeros(7, 3))] * 2)) == {"encoder_hidden_states"}
