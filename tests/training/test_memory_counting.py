"""Memory counted on fake tensors is what real ones take."""

import pytest
import torch
from bitsandbytes.optim import AdamW8bit

import hypernet
from examples.benchmarks.step import training_step
from examples.benchmarks.ways import make_inputs
from hypernet.training.memory_counting import (
    ADAMW_8BIT_STATE,
    ADAMW_STATE,
    FakeOptimizer,
    PeakMemory,
    count_peak_memory,
)
from tests.helpers.tiny_models import tiny_unet


def test_counts_memory_as_by_hand():
    with count_peak_memory() as memory:
        a = torch.ones(1000)  # 4,000 bytes
        b = a * 2  # 8,000
        view = b.view(10, 100)
        assert memory.now == memory.peak == 8000
        del b
        assert memory.now == 8000
        del view
        (a.half() + a).sum()  # 2,000 for the half, 4,000 for the sum of both, 4 for the sum of its elements
        assert memory.now == 4000 and memory.peak == 10000
        memory.restart()
        assert memory.peak == 4000


@pytest.mark.parametrize("checkpointing", [False, True])
def test_fake_tensors_take_as_much_as_real_ones(checkpointing):
    def peak(context):
        with context as memory:
            unet = tiny_unet()
            hypernetwork = hypernet.Hypernetwork([12, 16, 32], activation="swish")
            hypernet.attach(unet, hypernetwork)
            if checkpointing:
                unet.enable_gradient_checkpointing()
                unet.train()
            optimizer = torch.optim.AdamW(hypernetwork.parameters(), fused=True)
            inputs = make_inputs(unet, 2, 64, "cpu", torch.float32)
            for _ in range(2):
                training_step(unet, False, inputs, optimizer, torch.float32)
        return memory.peak

    with_data = peak(PeakMemory())
    assert peak(count_peak_memory()) == with_data > 1e6


@pytest.mark.parametrize(
    "optimizer_class, ratio", [(AdamW8bit, ADAMW_8BIT_STATE), (torch.optim.AdamW, ADAMW_STATE)], ids=["8bit", "AdamW"]
)
def test_a_fake_optimizer_takes_as_much_as_the_real_one(optimizer_class, ratio):
    weights = [torch.nn.Parameter(torch.ones(400, 200)), torch.nn.Parameter(torch.ones(400))]
    optimizer = optimizer_class(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [item for state in optimizer.state.values() for item in state.items()]
    held = sum(value.nbytes for key, value in states if torch.is_tensor(value) and "qmap" not in key)
    assert FakeOptimizer(weights, ratio).state.nbytes == pytest.approx(held, rel=0.03)
