"""What is compared with what: noise and timestep, the target, the loss."""

import torch
from diffusers.training_utils import compute_snr


def draw_noise_and_timestep(shape, num_train_timesteps: int, generator: torch.Generator):
    """Normal noise of `shape` and a timestep, uniform in 0..num_train_timesteps - 1, from `generator` (CPU)."""
    noise = torch.randn(shape, generator=generator)
    timestep = torch.randint(0, num_train_timesteps, (), generator=generator)
    return noise, timestep


def diffusion_target(scheduler, latents, noise, timesteps):
    """What the model should predict: the noise, the velocity (Salimans & Ho 2022), or the image itself."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return latents if scheduler.config.prediction_type == "sample" else noise


def offset_noise(noise, strength: float, generator: torch.Generator):
    """Noise (C, height, width) with each channel shifted by `strength` times a normal number.

    Source: N. Guttenberg, "Diffusion with Offset Noise" (2023), as diffusers' `--noise_offset` has it.
    """
    return noise + strength * torch.randn(noise.shape[0], 1, 1, generator=generator)


def snr_weights(scheduler, gamma: float):
    """The weight of each timestep's loss, (timesteps,), for its signal-to-noise ratio (Hang et al. 2023, Min-SNR).

    min(SNR, gamma) where the image is predicted; the same loss in terms of the noise is that over SNR, and in terms of the
    velocity over SNR + 1.
    """
    snr = compute_snr(scheduler, torch.arange(scheduler.config.num_train_timesteps))
    per = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / per[scheduler.config.prediction_type]


def diffusion_loss(prediction, target, weights):
    """The sum over the batch of each image's mean squared error over channels and cells, in float32.

    `weights` (B, 1, height or 1, width or 1) holds each image's share of the sum, times the weight of each cell.
    """
    return (weights * (prediction.float() - target.float()).square()).mean((1, 2, 3)).sum()
