"""examples/compare.py: a grid becomes runs, runs become a page."""

import csv
import json
import math
import re
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from PIL import Image
from wandb.proto.wandb_internal_pb2 import Record

from examples import compare
from examples.comparison import runs as compare_runs
from examples.comparison.grid import read_grid
from examples.comparison.page import write_page
from examples.comparison.results import Result
from examples.comparison.runs import Run, Runner
from examples.comparison.table import group_runs, table
from hypernet.cli.training_options import options_to_flags, parse_config
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, run, train_here


def write(path, **entries):
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


@pytest.fixture
def shared(models_dir, images_dir):
    """Options that every run needs."""
    return {
        "pretrained_model_name_or_path": str(models_dir / "epsilon"),
        "train_data_dir": str(images_dir),
        "cache_dir": str(models_dir / "cache"),
        "resolution": 64,
    }


def test_every_combination_is_a_run_called_after_what_differs(tmp_path, shared):
    path = write(
        tmp_path / "grid.yaml",
        **shared,
        grid=[
            {"activation": ["linear", "swish"], "learning_rate": ["1e-4", "5e-5:100, 1e-5:200"], "snr_gamma": [5]},
            {"layer_structure": [[1, 2, 2, 1]], "snr_gamma": [5]},
        ],
    )
    runs = read_grid(path, tmp_path / "out")
    assert [each.name for each in runs] == [
        "activation=linear,learning_rate=1e-4",
        "activation=linear,learning_rate=5e-5_100,_1e-5_200",
        "activation=swish,learning_rate=1e-4",
        "activation=swish,learning_rate=5e-5_100,_1e-5_200",
        "layer_structure=1,2,2,1",
    ]
    configs = [parse_config(options_to_flags(each.options)) for each in runs]
    assert [config.activation for config in configs] == ["linear", "linear", "swish", "swish", "linear"]
    assert configs[4].layer_structure_numbers == [1, 2, 2, 1] and {config.snr_gamma for config in configs} == {5}
    assert [config.output_dir for config in configs] == [str(tmp_path / "out" / "runs" / each.name) for each in runs]


def test_the_files_win_over_their_config(tmp_path, shared):
    write(tmp_path / "base.yaml", **shared, activation="relu", max_train_steps=7, seed=3)
    path = write(tmp_path / "grid.yaml", config=str(tmp_path / "base.yaml"), max_train_steps=8, grid={"seed": [4, 5]})
    configs = [parse_config(options_to_flags(each.options)) for each in read_grid(path, tmp_path)]
    assert [(config.activation, config.max_train_steps, config.seed) for config in configs] == [
        ("relu", 8, 4),
        ("relu", 8, 5),
    ]


@pytest.mark.parametrize(
    "entries, line",
    [
        ({"grid": {"activaton": ["relu"]}}, "unknown option activaton; did you mean activation?"),
        ({"activaton": "relu", "grid": {"seed": [1]}}, "unknown option activaton; did you mean activation?"),
        ({"grid": {"activation": ["relu", "nosuch"]}}, "nosuch"),
        ({"gird": {"seed": [1]}}, "unknown option gird"),
        ({"grid": {"activation": []}}, "grid: activation: the list is empty"),
        ({"seed": 1}, "grid: it is missing, or holds no lines such as activation: [linear, swish]"),
        ({"grid": {"seed": [1, 1]}}, "is there twice"),
        ({"grid": {"output_dir": ["a"]}}, "output_dir: each run gets its own; leave it out"),
        ({"config": "nosuch.yaml", "grid": {"seed": [1]}}, "nosuch.yaml: there is no such file"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(tmp_path, shared, entries, line):
    path = write(tmp_path / "grid.yaml", **shared, **entries)
    with pytest.raises(UserError, match=re.escape(line)) as raised:
        compare.main([str(path), "--output_dir", str(tmp_path / "out")])
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "runs").exists()


def test_a_folder_with_another_run_is_refused_before_anything(tmp_path, shared, models_dir, images_dir):
    path = write(tmp_path / "grid.yaml", **shared, max_train_steps=1, grid={"seed": [1, 2]})
    old = tmp_path / "out" / "runs" / "seed=2"
    flags = ["--max_train_steps=1", "--seed=2", "--activation=relu", "--name=out"]
    train_here(models_dir, images_dir, tmp_path / "made", *flags)
    shutil.copytree(tmp_path / "made", old)  # which this process has not locked
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for flags in ([], ["--dry_run"]):
        with pytest.raises(UserError, match=r"seed=2: it holds another run; differing: activation \(was relu, now "):
            compare.main([str(path), "--output_dir", str(tmp_path / "out"), *flags])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    write(path, **shared, report_to="none", max_train_steps=1, grid={"seed": [2]})
    compare.main([str(path), "--output_dir", str(tmp_path / "out"), "--overwrite"])
    assert json.loads((old / "run.json").read_text())["activation"] != "relu"


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match="it holds no run"):
        compare.main([str(tmp_path), "--output_dir", str(tmp_path / "out")])


def wandb_run(log):
    """What a run's file tells W&B of the run. (LevelDB's log format: blocks of 32 KiB with parts of records.)"""
    data, place, parts = log.read_bytes(), 7, b""
    while place < len(data):
        if 32768 - place % 32768 < 7:  # no room for a part's header
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<xxxxHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            if record.HasField("run"):
                return record.run
            parts = b""


def test_from_a_grid_to_a_page(tmp_path, shared, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    options = {
        **shared,
        "max_train_steps": 4,
        "logging_steps": 2,
        "validation_split": 0.3,
        "validation_loss_steps": 2,
        "validation_prompt": ["a red star", "a cat"],
        "validation_inference_steps": 2,
        "validation_steps": 2,
    }
    # two runs, and one of widths that the model has not
    path = write(tmp_path / "my.yaml", **options, grid=[{"learning_rate": ["1e-4", "1e-2"]}, {"widths": ["999"]}])
    with pytest.raises(UserError, match="1 of 3 runs have failed"):
        compare.main([str(path)])
    out = tmp_path / "output" / "my"
    rows = list(csv.DictReader(open(out / "compare.csv")))
    assert [row["run"] for row in rows[2:]] == ["widths=999"] and "999" in rows[2]["problem"]
    for row in rows[:2]:
        measured = list(csv.DictReader(open(out / "runs" / row["run"] / "validation_loss.csv")))
        assert float(row["val_loss"]) == pytest.approx(float(measured[-1]["val_loss"]), abs=1e-6)
        assert float(row["val_loss_base"]) == pytest.approx(float(measured[0]["val_loss_base"]), abs=1e-6)
    assert float(rows[0]["val_loss"]) <= float(rows[1]["val_loss"])

    assert list(rows[0])[:3] == ["run", "widths", "learning_rate"]  # that is all in which they differ
    page = (out / "compare.html").read_text()
    assert "999" in page and page.index(rows[0]["learning_rate"]) < page.index(rows[1]["learning_rate"])
    sources = re.findall(r'(?:src|href)="([^"]{,40})', page)
    # the curves; for two prompts the model alone and two runs; and a blank icon
    assert len(sources) == 1 + 2 * 3 + 1 and all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    assert Image.open(out / "compare.png").width > 600

    # in W&B they are of one group, each called after what differs, with the previews as a table
    (folder,) = (out / "runs" / rows[0]["run"] / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    record = wandb_run(log)
    assert (record.run_group, record.display_name) == ("my", rows[0]["run"])
    (previews, *_) = sorted(folder.glob("files/media/table/preview_table*.json"))
    previews = json.loads(previews.read_text())
    assert previews["columns"] == ["step", "prompt", "number", "preview"] and len(previews["data"]) == 2

    # once more: what is done stays, the one that failed is tried again, pictures are not drawn again
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*.png") if file.parent != out}
    capsys.readouterr()
    with pytest.raises(UserError, match="1 of 3 runs have failed"):
        compare.main([str(path), "--reach", "100"])
    said = capsys.readouterr().out
    assert "2 of them are done already" in said and "[1/1] widths=999: FAILED, " in said
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.png") if file.parent != out} == before
    assert [row["reached"] for row in csv.DictReader(open(out / "compare.csv"))] == ["0", "0", ""]


def test_runs_that_are_there(tmp_path, models_dir, images_dir, capsys):
    for name, steps in (("one", 2), ("two", 3)):
        train_here(models_dir, images_dir, tmp_path / name, f"--max_train_steps={steps}", "--logging_steps=1")
    compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output_dir", str(tmp_path / "page")])
    rows = {row["run"]: row for row in csv.DictReader(open(tmp_path / "page" / "compare.csv"))}
    assert set(rows) == {"one", "two"} and rows["two"]["max_train_steps"] == "3"
    losses = [float(row["loss"]) for row in csv.DictReader(open(tmp_path / "two" / "hypernetwork_loss.csv"))]
    assert float(rows["two"]["last_loss"]) == pytest.approx(losses[-1])  # the last tenth of three is one
    assert "--validation_split" in (tmp_path / "page" / "compare.html").read_text()
    assert "no pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    "jobs, place, given, expected",
    [
        (1, None, {}, {}),
        (2, None, {}, {"OMP_NUM_THREADS": "4", "OMP_THREAD_LIMIT": "4"}),
        (9, None, {}, {"OMP_NUM_THREADS": "1", "OMP_THREAD_LIMIT": "1"}),
        (2, None, {"OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3", "OMP_THREAD_LIMIT": "3"}),
        (2, "1", {}, {"CUDA_VISIBLE_DEVICES": "1"}),
    ],
)
def test_a_run_has_its_share_of_the_machine(tmp_path, monkeypatch, jobs, place, given, expected):
    monkeypatch.setattr(compare_runs.os, "cpu_count", lambda: 8)
    names = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "CUDA_VISIBLE_DEVICES")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"WANDB_RUN_ID": "one", **given}.items():
        monkeypatch.setenv(name, value)
    environment = Runner(tmp_path / "grid", jobs).environment(place)
    assert {name: environment[name] for name in names if name in environment} == expected
    assert environment["WANDB_RUN_GROUP"] == "grid" and "WANDB_RUN_ID" not in environment


def test_ctrl_c_lets_the_run_save_and_the_same_command_goes_on(tmp_path, shared):
    def grid(steps):
        return write(tmp_path / "grid.yaml", **shared, report_to="none", max_train_steps=steps, grid={"seed": [1, 2]})

    command = [sys.executable, REPO / "examples" / "compare.py", grid(100000), "--output_dir", tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    first, second = (tmp_path / "out" / "runs" / f"seed={seed}" for seed in (1, 2))
    deadline = time.monotonic() + 120
    while not (first / "hypernetwork_loss.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert errors.strip().splitlines()[-1] == "stopped; what is done is kept, and the same command goes on from here"
    (state,) = (first / "checkpoints").iterdir()  # saved, and nobody is at work there any more
    step = int(state.name.removeprefix("step-"))
    assert not second.exists()
    compare.main([str(grid(step + 2)), "--output_dir", str(tmp_path / "out")])
    rows = {row["run"]: row for row in csv.DictReader(open(tmp_path / "out" / "compare.csv"))}
    assert {row["step"] for row in rows.values()} == {str(step + 2)}
    assert f"Going on from {state}" in (tmp_path / "out" / "logs" / "seed=1.txt").read_text()


def test_losses_that_are_not_finite_are_told(tmp_path):
    results = [result("relu 0", val_loss=math.nan), result("relu 1", val_loss=0.5), result("swish 0", val_loss=0.6)]
    for each in results:
        each.losses, each.held_out = [(10, math.nan), (20, math.inf)], [(10, each.val_loss)]
    paths = write_page(sorted(results, key=lambda each: each.rank), None, tmp_path, "$x^2 runs")
    assert all(path.stat().st_size for path in paths)
    _, rows = table(group_runs(results))
    assert rows[0][:3] == ["swish", "1", "0.6000"] and rows[1][:3] == ["relu", "2", "0.5000, 1 not finite"]


def result(name, **values):
    options = {"activation": name.split()[0], "seed": int(name.split()[1])}
    return Result(Run(name, None, options), options, values.pop("problem", None), [], [], **values)


def test_seeds_are_taken_together():
    losses = {"relu 0": 0.2, "relu 1": 0.4, "swish 0": 0.25, "swish 1": 0.27}
    results = [result(name, val_loss=loss) for name, loss in losses.items()]
    results += [result("mish 0", problem="it died"), result("mish 1", val_loss=0.1)]
    headings, rows = table(group_runs(results))
    assert headings == ["activation", "runs", "held-out loss", ""]
    assert [row[0] for row in rows] == ["swish", "relu", "mish"]  # by the mean; one that failed comes last
    assert rows[1][2] == f"{statistics.fmean([0.2, 0.4]):.4f} ± {statistics.stdev([0.2, 0.4]):.4f}"
    assert rows[2][-1] == "it died"


def test_values_that_are_alike_when_shortened_are_not_the_same():
    results = [result(f"{'x' * 60}{end} 0", val_loss=loss) for end, loss in (("a", 0.2), ("b", 0.4))]
    groups = group_runs(results)
    assert [len(group.results) for group in groups] == [1, 1] and len(groups[0].values["activation"]) == 40


def test_the_sweeps_options_are_the_trainings(tmp_path):
    sweep = yaml.safe_load((REPO / "examples" / "configs" / "sweep.yaml").read_text())
    values = {
        name: entry.get("value", entry.get("values", [entry.get("min")])[0])
        for name, entry in sweep["parameters"].items()
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    # as the agent runs it, but that `accelerate` only tells what it is given
    (tmp_path / "accelerate").write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    (tmp_path / "accelerate").chmod(0o755)
    words = [word for chunk in sweep["command"] for word in {"${env}": [], "${args}": flags}.get(chunk, [chunk])]
    code = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
    done = run("-c", code, *words, env={"PATH": f"{tmp_path}:/usr/bin:/bin", "WANDB_RUN_ID": "abc123"})
    launch, script, *given = done.stdout.splitlines()
    assert (launch, script) == ("launch", "train_hypernetwork.py")
    config = parse_config(given)
    assert config.output_dir == "output/sweep/abc123" and config.activation == values["activation"]
    assert config.has_validation and config.report_to == "wandb"


def test_pictures_begin_from_the_same_noise_whatever_the_seed_of_the_training(tmp_path, models_dir, images_dir):
    for seed in (1, 2):
        flags = [f"--seed={seed}", "--max_train_steps=1", "--validation_prompt", "a cat", "--weight_init=zero"]
        flags += ["--learning_rate=1e-30", "--validation_inference_steps=2", "--adam_weight_decay=0"]
        train_here(models_dir, images_dir, tmp_path / f"seed{seed}", *flags)
    compare.main([str(tmp_path / "seed1"), str(tmp_path / "seed2"), "--output_dir", str(tmp_path / "page")])
    pictures = [np.asarray(Image.open(path)) for path in (tmp_path / "page" / "pictures").glob("*.png")]
    # hypernetworks that change nothing: all that differs is the noise
    assert len(pictures) >= 2 and all((picture == pictures[0]).all() for picture in pictures)
