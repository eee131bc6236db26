"""The EMA against its formula."""

import torch

from hypernet import Hypernetwork
from hypernet.training.ema import EMA


def test_ema_equals_the_formula_and_keeps_the_weights():
    hypernetwork = Hypernetwork([8], weight_init="kaiming_normal")
    ema, generator = EMA(hypernetwork, 0.6), torch.Generator().manual_seed(0)
    expected = [weight.detach().clone() for weight in hypernetwork.parameters()]
    for n in range(1, 8):
        with torch.no_grad():
            for weight in hypernetwork.parameters():
                weight += torch.randn(weight.shape, generator=generator)
        ema.step()
        decay = 0.0 if n == 1 else min(0.6, n / (9 + n))  # (1 + m) / (10 + m) after m = n - 1 updates
        expected = [decay * old + (1 - decay) * new for old, new in zip(expected, hypernetwork.parameters())]
    trained = [weight.detach().clone() for weight in hypernetwork.parameters()]
    with ema.applied():
        for weight, average in zip(hypernetwork.parameters(), expected):
            assert torch.allclose(weight, average, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(hypernetwork.parameters(), trained))


def test_state_dict_restores_the_average():
    hypernetwork = Hypernetwork([8], weight_init="kaiming_normal")
    first, second = EMA(hypernetwork, 0.9), EMA(hypernetwork, 0.9)
    first.step()
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        for weight in hypernetwork.parameters():
            weight += 1
    first.step()
    second.step()
    averages = first.average.shadow_params, second.average.shadow_params
    assert all(torch.equal(a, b) for a, b in zip(*averages, strict=True))


def test_without_a_decay_it_does_nothing():
    ema = EMA(Hypernetwork([8], weight_init="kaiming_normal"), 0.0)
    ema.step()
    with ema.applied():
        assert ema.state_dict() == {}
