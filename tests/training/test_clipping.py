"""Clipping against torch's own functions."""

import pytest
import torch
from accelerate import Accelerator

from hypernet.training.optimizers import clip_gradients


@pytest.mark.parametrize("mode", ["norm", "value", "none"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1e9])
def test_clipping(mode, threshold):
    def weights():
        generator = torch.Generator().manual_seed(0)
        made = [torch.nn.Parameter(torch.zeros(5, 4)), torch.nn.Parameter(torch.zeros(3))]
        for weight in made:
            weight.grad = torch.randn(weight.shape, generator=generator)
        return made

    ours, theirs = weights(), weights()
    norm = torch.cat([weight.grad.flatten() for weight in theirs]).norm()
    if threshold and mode == "norm":
        torch.nn.utils.clip_grad_norm_(theirs, threshold)
    elif threshold and mode == "value":
        for weight in theirs:
            weight.grad.clamp_(-threshold, threshold)
    assert torch.allclose(clip_gradients(Accelerator(cpu=True), ours, mode, threshold), norm)
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(ours, theirs))
