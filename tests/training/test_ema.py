"""The moving average against its formula, written out."""

import torch

from hypernet import Hypernetwork
from hypernet.training.ema import EMA


def test_average_equals_the_formula_and_leaves_the_weights():
    hypernetwork = Hypernetwork([8], weight_init="kaiming_normal")
    average, generator = EMA(hypernetwork, 0.6), torch.Generator().manual_seed(0)
    expected = [weight.detach().clone() for weight in hypernetwork.parameters()]
    for n in range(1, 8):
        with torch.no_grad():
            for weight in hypernetwork.parameters():
                weight += torch.randn(weight.shape, generator=generator)
        average.step()
        decay = 0.0 if n == 1 else min(0.6, n / (9 + n))  # (1 + m) / (10 + m) with m = n - 1 updates before
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, hypernetwork.parameters())]
    trained = [weight.detach().clone() for weight in hypernetwork.parameters()]
    with average.applied():
        for weight, wanted in zip(hypernetwork.parameters(), expected):
            assert torch.allclose(weight, wanted, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(hypernetwork.parameters(), trained))


def test_state_goes_on_and_no_decay_is_no_average():
    hypernetwork = Hypernetwork([8], weight_init="kaiming_normal")
    first, second = EMA(hypernetwork, 0.9), EMA(hypernetwork, 0.9)
    first.step()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for weight in hypernetwork.parameters():
            weight += 1
    first.step(), second.step()
    assert all(torch.equal(a, b) for a, b in zip(first.ema.shadow_params, second.ema.shadow_params))
    off = EMA(hypernetwork, 0.0)
    off.step()
    with off.applied():
        assert off.state_dict() == {}
