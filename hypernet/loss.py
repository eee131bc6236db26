"""What is compared with what: noise and timestep, the target, the loss."""

import torch


def draw_noise_and_timestep(shape, num_train_timesteps: int, generator: torch.Generator):
    """Normal noise of `shape` and a timestep, uniform in 0..num_train_timesteps - 1, from `generator` (CPU)."""
    noise = torch.randn(shape, generator=generator)
    timestep = torch.randint(0, num_train_timesteps, (), generator=generator)
    return noise, timestep


def diffusion_target(scheduler, latents, noise, timesteps):
    """What the model should predict: the noise, or for v-prediction models the velocity (Salimans & Ho 2022)."""
    if scheduler.config.prediction_type == "v_prediction":
        return scheduler.get_velocity(latents, noise, timesteps)
    return noise


def diffusion_loss(prediction, target, weights):
    """The sum over the batch of each image's mean squared error over channels and cells, in float32.

    `weights` (B, 1, height or 1, width or 1) holds each image's share of the sum, times the weight of each cell.
    """
    return (weights * (prediction.float() - target.float()).square()).mean((1, 2, 3)).sum()
