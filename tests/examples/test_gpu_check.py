"""The check for machines with a GPU: on a CPU from end to end, and what a part that fails costs."""

import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from examples.benchmarks import gpu_check
from examples.benchmarks.gpu_parts import processes
from examples.benchmarks.gpu_parts.processes import Part, Skipped
from examples.benchmarks.gpu_parts.report import Report, judge, markdown, shown
from tests.helpers.scripts import REPO, one_line_error, run

NEEDS_GPU = {"quickstart_fp16", "two_gpus"}


def read_report(folder):
    """Return report.json, after checking that report.md says the same."""
    data = json.loads((folder / "report.json").read_text())
    assert (folder / "report.md").read_text() == f"{markdown(data)}\n"
    return data


def test_runs_from_end_to_end_on_a_cpu(tmp_path):
    flags = ["--device=cpu", "--quick", "--minutes=20", f"--output_dir={tmp_path}"]
    done = run(REPO / "examples" / "benchmarks" / "gpu_check.py", *flags)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    parts = read_report(tmp_path)["parts"]
    assert set(parts) == set(gpu_check.PARTS)
    assert {name for name, part in parts.items() if part["status"] == "skipped"} == NEEDS_GPU
    assert all(part["status"] == "ok" and part["rows"] for name, part in parts.items() if name not in NEEDS_GPU)
    assert all(f"## {part['title']}\n" in done.stdout for part in parts.values())

    problems = {name for name, part in parts.items() if any("problem" in row for row in part["rows"])}
    assert problems == {"sd15_compiled"}  # which needs a GPU
    assert [row["way"] for row in parts["sd15"]["rows"]] == list(gpu_check.PLAIN) * 2
    assert all(row["ms"] > 0 for name in ("sd15", "sdxl", "sdxl_options") for row in parts[name]["rows"])
    (resumed,) = parts["resume"]["rows"]
    assert resumed["resumed"] == resumed["the same run twice"] == "equal bit for bit"
    (preset,) = parts["presets"]["rows"]
    for kind in ("encoding", "step", "preview"):
        assert preset[f"{kind}, measured"] == pytest.approx(preset[f"{kind}, counted"], rel=0.01)
    losses, previews = parts["quickstart_cpu"]["rows"]
    assert losses["bf16"] == pytest.approx(losses["CPU, float32"], rel=0.2)
    assert previews["CPU, float32"] == 0 < previews["bf16"] < 20
    assert (tmp_path / "quickstart_bf16.png").is_file()


# --- Parts that fail


def good(settings):
    yield {"way": "floor", "ms": 123.4, "met": True}


def crash(settings):
    yield {"way": "floor", "ms": 1.0}
    os.kill(os.getpid(), signal.SIGKILL)


def wrong(settings):
    yield {"way": "floor", "ms": 1.0}
    raise RuntimeError("no kernel image\nis available")


def hang(settings):
    yield {"way": "floor", "ms": 1.0}
    time.sleep(100)


def skip(settings):
    raise Skipped("needs two GPUs")
    yield


@pytest.fixture
def parts(monkeypatch):
    """Parts that end in every way, a good one first and last."""
    functions = {"first": good, "crash": crash, "wrong": wrong, "hang": hang, "skip": skip, "last": good}
    monkeypatch.setitem(sys.modules, f"{processes.PACKAGE}.fakes", types.SimpleNamespace(**functions))
    found = {name: Part(f"fakes.{name}", name.upper(), 0.3 if name == "hang" else 60) for name in functions}
    monkeypatch.setattr(gpu_check, "PARTS", found)
    monkeypatch.setattr(gpu_check, "prepare_processes", lambda settings: None)
    return found


def check(folder, *flags):
    """Run the check in this process; return its exit code and its report."""
    with pytest.raises(SystemExit) as end:
        gpu_check.main(["--device=cpu", f"--output_dir={folder}", *flags])
    return int(end.value.code), read_report(folder)["parts"]


@pytest.mark.skipif(sys.platform != "linux", reason="the fakes reach only a process that is forked")
def test_a_part_that_fails_costs_no_other(parts, tmp_path, capsys):
    code, found = check(tmp_path)
    assert code == 1
    statuses = {name: part["status"] for name, part in found.items()}
    assert statuses == {
        "first": "ok",
        "crash": "failed",
        "wrong": "failed",
        "hang": "timed out",
        "skip": "skipped",
        "last": "ok",
    }
    assert "is available" in found["wrong"]["message"] and "-9" in found["crash"]["message"]
    assert found["skip"]["message"] == "needs two GPUs" and found["hang"]["seconds"] < 30
    assert [len(part["rows"]) for part in found.values()] == [1, 1, 1, 1, 0, 1]  # what was found before is kept
    printed = capsys.readouterr().out
    assert [line for line in printed.splitlines() if line.startswith("## ")] == [f"## {name.upper()}" for name in parts]


@pytest.mark.skipif(sys.platform != "linux", reason="the fakes reach only a process that is forked")
def test_chosen_parts_alone_run_and_end_well(parts, tmp_path):
    code, found = check(tmp_path, "--parts", "last", "skip")
    assert code == 0 and [part["status"] for part in found.values()] == ["skipped", "ok"]


def test_parts_that_no_time_is_left_for_are_not_run(parts, tmp_path):
    code, found = check(tmp_path, "--minutes=0.01")
    assert code == 0 and {part["status"] for part in found.values()} == {"not run"} and set(found) == set(parts)


@pytest.mark.skipif(sys.platform != "linux", reason="the fakes reach only a process that is forked")
def test_a_part_that_the_whole_check_leaves_too_little_time_has_not_failed(parts, monkeypatch, tmp_path):
    monkeypatch.setattr(gpu_check, "MIN_SECONDS", 0)
    monkeypatch.setitem(parts, "hang", Part("fakes.hang", "HANG", 60))
    code, found = check(tmp_path, "--parts", "hang", "--minutes=0.02")
    assert code == 0 and found["hang"]["status"] == "cut short" and len(found["hang"]["rows"]) == 1


def test_more_minutes_give_each_part_more_time(parts, monkeypatch, tmp_path):
    limits = []
    monkeypatch.setattr(gpu_check, "run_part", lambda *given: limits.append(given[3]) or processes.Outcome("ok"))
    for minutes in (4, 8, 16):
        check(tmp_path, "--parts", "hang", f"--minutes={minutes}")
    assert limits == pytest.approx([1.5, 1.5, 3])  # 0.3 s, five times as much on a CPU


@pytest.mark.parametrize("flags", [["--parts", "sd14"], ["--minutes", "0"], ["--minutes", "nan"]])
def test_an_option_that_cannot_work_is_one_line(flags, tmp_path):
    assert " ".join(flags) in one_line_error(gpu_check.main, *flags, f"--output_dir={tmp_path}")


@pytest.mark.parametrize("device", ["", "cuda", "mps"])
def test_a_device_that_is_missing_is_one_line(device, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: device == "mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: device == "cuda")
    flags = ["--device", device] if device else []
    line = one_line_error(gpu_check.main, *flags, f"--output_dir={tmp_path}")
    assert " ".join(flags) in line and "--device cpu --quick" in line and not list(tmp_path.iterdir())


def test_the_device_is_the_gpu_unless_one_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [gpu_check.find_device(wanted) for wanted in (None, "mps", "cpu")] == ["cuda", "mps", "cpu"]


# --- The report


def test_the_report_names_no_folder_of_the_user(tmp_path):
    folders = [tmp_path, processes.REPO, Path.home()]
    text = " ".join(f"{folder / 'log.txt'}" for folder in folders)
    report = Report(f"python gpu_check.py --output_dir {tmp_path}", processes.Settings("cpu", False, tmp_path))
    report.parts["machine"] = Part("fakes.good", "GOOD", 1), processes.Outcome("failed", text, 1.0, [{"fact": text}])
    told = json.dumps(report.data(), ensure_ascii=False)
    assert not any(str(folder) in told for folder in folders) and told.count("…") == 7


def test_targets_are_judged():
    assert judge({"GiB": 3.9}, "GiB", 4) == {"GiB": 3.9, "target": "GiB <= 4", "met": True}
    assert not judge({"GiB": 4.1}, "GiB", 4)["met"]
    assert judge({"x ours": 2.0}, "x ours", 2, at_most=False)["met"]


@pytest.mark.parametrize(
    "value, text",
    [(1234.5, "1234"), (12.34, "12.3"), (1.234, "1.23"), (0.00123, "0.0012"), (0.0, "0"), (True, "yes"), (None, "")],
)
def test_numbers_are_shown_with_three_digits(value, text):
    assert shown(value) == text


def test_synchronizations_are_counted_in_steps_that_do_not_log():
    from examples.benchmarks.gpu_parts.training import count_synchronizations

    marks = [(0.0, ["early.py:1"] * 9)] * 5
    marks += [(0.0, ["log.py:2"] if step % 10 == 0 else ["loop.py:3"] * (step == 7)) for step in range(6, 31)]
    marks += [(0.0, ["end.py:4"])]
    at_most, logging, place = count_synchronizations(marks, 5)
    assert at_most["value"] == 1 and not at_most["met"] and logging["value"] == 1
    assert place["value"].startswith("loop.py:3,")
