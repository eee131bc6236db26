"""The training objective against its formulas, written out."""

import pytest
import torch
from diffusers import DDPMScheduler

from hypernet.data.dataset import offset_noise
from hypernet.training.loss import diffusion_loss, prediction_target, snr_weights


def test_prediction_targets():
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 3, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([0, 500, 999])
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type="epsilon")
    assert prediction_target(scheduler, latents, noise, timesteps) is noise
    scheduler.register_to_config(prediction_type="v_prediction")
    alphas = torch.cumprod(1 - torch.linspace(0.0001**0.5, 0.02**0.5, 1000) ** 2, 0)[timesteps].view(3, 1, 1, 1)
    velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
    assert (prediction_target(scheduler, latents, noise, timesteps) - velocity).abs().max() < 1e-5
    loss = diffusion_loss(latents.half(), velocity, torch.full((3, 1, 1, 1), 1 / 3))
    assert loss.dtype == torch.float32
    assert torch.allclose(loss, (latents.half().float() - velocity).square().mean())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_equals_its_definition(prediction_type):
    """Min-SNR weights the error of the predicted clean image by min(SNR, gamma)."""
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", prediction_type=prediction_type)
    table = snr_weights(scheduler, 5.0)
    clean, noise, error = torch.randn(3, 1000, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    timesteps = torch.arange(1000)
    alphas = scheduler.alphas_cumprod.double().view(-1, 1, 1, 1)
    signal, sigma = alphas.sqrt(), (1 - alphas).sqrt()
    noisy = signal * clean + sigma * noise
    target = prediction_target(scheduler, clean, noise, timesteps)
    prediction = target + 0.1 * error
    if prediction_type == "epsilon":
        predicted_clean = (noisy - sigma * prediction) / signal
    else:
        predicted_clean = signal * noisy - sigma * prediction
    snr = (alphas / (1 - alphas)).clamp(max=5.0)
    expected = (snr * (predicted_clean - clean) ** 2).flatten()
    weighted = table * ((prediction - target) ** 2).flatten()
    assert torch.allclose(weighted, expected, rtol=1e-3)


def test_offset_noise_shifts_whole_channels():
    noise = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(0))
    shift = offset_noise(noise, 0.1, torch.Generator().manual_seed(1)) - noise
    assert torch.allclose(shift, shift[:, :1, :1].expand_as(shift), atol=1e-6)
    expected = 0.1 * torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(shift[:, 0, 0], expected.flatten(), atol=1e-6)


def test_loss_weights_of_images_and_latent_cells():
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
