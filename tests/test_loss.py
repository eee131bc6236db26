"""Targets against the formulas written out with the cumulative alphas."""

import torch
from diffusers import DDPMScheduler

from hypernet.loss import diffusion_loss, diffusion_target


def test_targets():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="epsilon")
    assert diffusion_target(scheduler, latents, noise, timesteps) is noise
    scheduler.register_to_config(prediction_type="v_prediction")
    alphas = torch.cumprod(1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2, 0)[timesteps].view(3, 1, 1, 1)
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    assert (diffusion_target(scheduler, latents, noise, timesteps) - velocity).abs().max() < 1e-5
    loss = diffusion_loss(latents.half(), velocity, torch.full((3, 1, 1, 1), 1 / 3))
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, (latents.half().float() - velocity).square().mean())


def test_weights_of_images_and_cells():
    prediction, target = torch.randn(2, 2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
    cells = torch.rand(2, 1, 6, 8, generator=torch.Generator().manual_seed(1))
    expected = 0.0
    for image, share in enumerate((0.5, 1.5)):
        for y in range(6):
            for x in range(8):
                error = ((prediction - target)[image, :, y, x] ** 2).sum()
                expected += share * cells[image, 0, y, x] * error / (4 * 6 * 8)
    loss = diffusion_loss(prediction, target, cells * torch.tensor([0.5, 1.5]).view(2, 1, 1, 1))
    assert torch.allclose(loss, expected)
