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
    loss = diffusion_loss(latents.half(), velocity)
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, (latents.half().float() - velocity).square().mean())
