"""The diffusion training objective: from a batch of latents and noise to one number."""

from collections.abc import Callable

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr


def training_loss(
    model: Callable[..., torch.Tensor],
    batch: dict,
    conditions: dict,
    scheduler: DDPMScheduler,
    dtype: torch.dtype,
    snr_table: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss of a batch, a scalar.

    Args:
        model: a `HypernetworkUNet` or its forward, possibly prepared for distributed training.
        batch: as `TrainingDataset.__getitems__` makes it, on the device.
        conditions: the UNet's further arguments, in `dtype`.
        dtype: the precision of the frozen UNet.
        snr_table: loss weight per timestep, from `snr_weights`.
    """
    latents, noise, timesteps = batch["latents"], batch["noise"], batch["timesteps"]  # (B, C, H, W) twice, (B,)
    noisy = scheduler.add_noise(latents, noise, timesteps).to(dtype)
    prediction = model(noisy, timesteps, **conditions)  # (B, C, H, W)
    target = prediction_target(scheduler, latents, noise, timesteps)
    weights = batch["weights"]  # (B, 1, H or 1, W or 1)
    if snr_table is not None:
        weights = weights * snr_table[timesteps].view(-1, 1, 1, 1)
    return diffusion_loss(prediction, target, weights)


def prediction_target(
    scheduler: DDPMScheduler, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """Return what the model should predict: the noise, the velocity (Salimans & Ho 2022), or the clean latents."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return latents if scheduler.config.prediction_type == "sample" else noise


def snr_weights(scheduler: DDPMScheduler, gamma: float) -> torch.Tensor:
    """Return the Min-SNR loss weight of each timestep, (timesteps,) (Hang et al. 2023, arXiv 2303.09556).

    min(SNR, gamma) where the model predicts clean latents; divided by SNR where it predicts noise, and by SNR + 1 where
    it predicts the velocity.
    """
    snr = compute_snr(scheduler, torch.arange(scheduler.config.num_train_timesteps))
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[scheduler.config.prediction_type]


def diffusion_loss(prediction: torch.Tensor, target: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return the sum over the batch of each image's mean squared error, in float32.

    `weights`, (B, 1, H or 1, W or 1), holds each image's share of the sum times the weight of each latent cell.
    """
    return (weights * (prediction.float() - target.float()).square()).mean((1, 2, 3)).sum()
