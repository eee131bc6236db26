"""Gradients are clipped by their norm, each by its value, or not at all."""

import math

import torch
from accelerate import Accelerator


def clip_gradients(accelerator: Accelerator, parameters, mode: str, threshold: float) -> torch.Tensor:
    """Clip what has been accumulated, free of the loss scale; the norm before.

    Args:
        mode: norm, value or none.
        threshold: of the norm or of each value; 0 clips nothing.
    """
    parameters, clips = list(parameters), threshold > 0
    by_norm = threshold if mode == "norm" and clips else math.inf
    norm = accelerator.clip_grad_norm_(parameters, by_norm)  # takes the loss scale out first
    if mode == "value" and clips:
        torch.nn.utils.clip_grad_value_(parameters, threshold)
    return norm
