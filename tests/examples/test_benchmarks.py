"""The counts that the benchmarks print, on the true shapes, against what they are to reach; and the whole of them once."""

import json
import re

import pytest
import torch
from bitsandbytes.optim import AdamW8bit

import hypernet
from examples import benchmark, benchmark_presets, benchmark_run, benchmark_use, benchmark_ways
from examples.count_memory import MomentsIn8Bits, PeakMemory, counted
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, run, unexpected
from tests.helpers.tiny_models import tiny_unet


def arguments(model, *more):
    return benchmark.parse_arguments(["--model", model, "--count_only", *more])


@pytest.mark.parametrize("model, floor, linear, activated", [("sd15", 1726, 1.06, 1.17), ("sdxl", 14222, 1.11, 1.39)])
def test_a_step_is_near_the_floor(model, floor, linear, activated):
    ways = ("floor", "ours, linear", "ours, swish")
    flops = {way: benchmark.count_flops(arguments(model), "training", way) for way in ways}
    assert round(flops["floor"] / 1e9) == floor
    ratio = {way: flops[way] / flops["floor"] for way in ways}
    assert 1 < ratio["ours, linear"] <= linear < ratio["ours, swish"] <= activated


@pytest.mark.parametrize("preset, most", [("6gb", (1.68, 2.47)), ("8gb", (2.13, 2.92))])
def test_the_memory_of_small_cards(preset, most, capsys):
    benchmark_presets.main([preset])
    encoding, *training = (float(size) for size in re.findall(r"([\d.]+) GiB", capsys.readouterr().out))
    assert encoding < 3.1
    for size, limit in zip(training, most):
        assert 0.95 * limit < size < limit
    with pytest.raises(UserError, match="foo: there is no such preset"):
        benchmark_presets.main([preset, "foo"])


def test_a_batch_of_four_is_nearer():
    args = arguments("sd15", "--batch_size", "4")
    floor, ours = (benchmark.count_flops(args, "training", way) for way in ("floor", "ours, linear"))
    assert floor < ours <= 1.03 * floor


def test_a_merged_hypernetwork_costs_nothing():
    flops = [benchmark.count_flops(arguments("quickstart"), "sampling", way) for way in ("none", "merged", "attached")]
    assert flops[0] == flops[1] < flops[2] < 1.1 * flops[0]


def test_the_sizes_of_files_and_frozen_models(capsys):
    benchmark_use.main(["sizes"])
    said = capsys.readouterr().out
    assert re.search(r"^1,2,1 +float32 +83.7 MiB$", said, re.M) and re.search(
        r"^UNet of sdxl +--quantize nf4 +1.83 GiB$", said, re.M
    )


def test_memory_is_counted_by_hand():
    with counted() as memory:
        a = torch.ones(1000)  # 4,000 bytes
        b = a * 2  # 8,000
        view = b.view(10, 100)
        assert memory.now == memory.peak == 8000
        del b
        assert memory.now == 8000
        del view
        (a.half() + a).sum()  # 2,000 for the half, 4,000 for the sum of both, 4 for theirs
        assert memory.now == 4000 and memory.peak == 10000


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_has_no_data_takes_what_has(checkpointing):
    def peak(context):
        with context as memory:
            unet = tiny_unet()
            hypernetwork = hypernet.Hypernetwork([12, 16, 32], activation="swish")
            hypernet.attach(unet, hypernetwork)
            if checkpointing:
                unet.enable_gradient_checkpointing()
                unet.train()
            optimizer = torch.optim.AdamW(hypernetwork.parameters(), fused=True)
            inputs = benchmark_ways.make_inputs(unet, 2, 64, "cpu", torch.float32)
            for _ in range(2):
                benchmark.training_step(unet, False, inputs, optimizer, torch.float32)
        return memory.peak

    with_data = peak(PeakMemory())
    assert peak(counted()) == with_data > 1e6


def test_moments_in_8_bits():
    weights = [torch.nn.Parameter(torch.ones(100, 100)), torch.nn.Parameter(torch.ones(100))]
    optimizer = AdamW8bit(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    held = 0
    for state in optimizer.state.values():
        tensors = [value for key, value in state.items() if torch.is_tensor(value) and "qmap" not in key]
        held += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    ours = MomentsIn8Bits(weights).state
    assert sum(tensor.numel() * tensor.element_size() for tensor in ours) == held


def test_the_whole_table(tmp_path, capsys):
    table, ways = tmp_path / "table.json", ["floor", "webui", "lora"]
    benchmark.main(["--rounds=1", "--size=64", f"--json={table}", "--ways", *ways])
    rows = json.loads(table.read_text())
    training, sampling = rows["training"], rows["sampling"]
    assert [row["way"] for row in training] == ways and [row["way"] for row in sampling] == list(
        benchmark_ways.SAMPLING
    )
    assert len(capsys.readouterr().out.splitlines()) == len(training) + len(sampling) + 2
    assert training[0]["time_ratio"] == training[0]["flops_ratio"] == sampling[0]["time_ratio"] == 1
    assert training[1]["flops_ratio"] > training[2]["flops_ratio"] > 1  # at 64 pixels a LoRA's products show
    for row in training + sampling:
        assert row["images_per_second"] > 0 and row["memory_counted"] > 0 and row["memory_measured"] is None
    done = run(REPO / "examples" / "benchmarks" / "step.py", "--size", "100")
    assert done.returncode == 2 and done.stderr == "error: --size 100: it must be a multiple of 64\n"
    assert not unexpected(done.stdout)


def test_whole_runs(images_dir, capsys):
    flags = ["--max_train_steps=2", "--rounds=1", "--resolution=64", f"--train_data_dir={images_dir}"]
    benchmark_run.main(flags)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[0].startswith("round 1: LoRA ") and "steps per second" in said[1]
    share = float(said[2].split()[1].rstrip("%"))
    assert 0 < share < 100
