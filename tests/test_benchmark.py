"""The counts that the benchmark prints, on the true shapes, against what they are to reach; and the whole of it once."""

import json

import pytest
from conftest import REPO, run, unexpected

from examples import benchmark


def ratios(model, *arguments):
    args = benchmark.parse_arguments(["--model", model, "--flops_only", *arguments])
    counts = benchmark.count_flops(args)
    return counts["floor"], {way: flops / counts["floor"] for way, flops in counts.items()}


@pytest.mark.parametrize("model, floor, linear, activated", [("sd15", 1726, 1.06, 1.17), ("sdxl", 14222, 1.11, 1.39)])
def test_a_step_is_near_the_floor(model, floor, linear, activated):
    flops, ratio = ratios(model, "--ways", "floor", "ours, linear", "ours, swish")
    assert round(flops / 1e9) == floor
    assert 1 < ratio["ours, linear"] <= linear < ratio["ours, swish"] <= activated


def test_the_whole_table(tmp_path):
    table = tmp_path / "table.json"
    done = run(REPO / "examples" / "benchmark.py", "--rounds", "1", "--size", "64", "--json", table)
    assert done.returncode == 0 and not unexpected(done.stderr), done.stderr
    rows = json.loads(table.read_text())["rows"]
    assert [row["way"] for row in rows] == list(benchmark.WAYS) and len(done.stdout.splitlines()) == len(rows)
    assert rows[0]["time_ratio"] == rows[0]["flops_ratio"] == 1
    assert rows[1]["flops_ratio"] > rows[2]["flops_ratio"] > rows[3]["flops_ratio"] > 1
    assert all(row["images_per_second"] > 0 and row["peak_memory"] is None for row in rows)
    done = run(REPO / "examples" / "benchmark.py", "--size", "100")
    assert done.returncode == 2 and done.stderr == "error: --size 100: it must be a multiple of 64\n"
