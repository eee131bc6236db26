"""examples/compare.py: whole comparisons, from a grid or from run folders to the page."""

import csv
import glob
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from examples import compare
from examples.comparison import runs
from examples.comparison.previews import generate_previews
from examples.comparison.results import SCORES, read_result
from hypernet.cli.training_options import parse_config
from hypernet.utils.errors import UserError
from tests.helpers.forked_python import forked_python
from tests.helpers.grids import ProcessWithin, required_options, write_yaml
from tests.helpers.scripts import REPO, run, train_here
from tests.helpers.tiny_models import tiny_unet
from tests.helpers.wandb_files import read_records


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def modification_times(*folders: Path) -> dict[Path, int]:
    return {file: file.stat().st_mtime_ns for folder in folders for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    "entries, named",
    [
        ({"grid": {"activaton": ["relu"]}}, "activaton.*activation"),
        ({"activaton": "relu", "grid": {"seed": [1]}}, "activaton.*activation"),
        ({"grid": {"activation": ["relu", "nosuch"]}}, "nosuch"),
        ({"gird": {"seed": [1]}}, "gird"),
        ({"grid": {"activation": []}}, "grid: activation"),
        ({"seed": 1}, "grid: "),
        ({"grid": {"seed": [1, 1]}}, "grid: seed=1"),
        ({"grid": {"output_dir": ["a"]}}, "output_dir"),
        ({"config": "nosuch.yaml", "grid": {"seed": [1]}}, "nosuch.yaml"),
    ],
)
def test_reports_a_bad_grid_before_training(tmp_path, models_dir, images_dir, entries, named):
    path = write_yaml(tmp_path / "grid.yaml", **required_options(models_dir, images_dir), **entries)
    with pytest.raises(UserError, match=f"^{re.escape(str(path))}: .*{named}") as raised:
        compare.main([str(path), "--output_dir", str(tmp_path / "out")])
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out" / "runs").exists()


def test_refuses_a_folder_that_holds_another_run(tmp_path, models_dir, images_dir, monkeypatch):
    monkeypatch.setattr(runs, "subprocess", types.SimpleNamespace(Popen=ProcessWithin, STDOUT=None))
    options = required_options(models_dir, images_dir)
    path = write_yaml(tmp_path / "grid.yaml", **options, max_train_steps=1, grid={"seed": [1, 2]})
    old = tmp_path / "out" / "runs" / "seed=2"
    flags = ["--max_train_steps=1", "--seed=2", "--activation=relu", "--name=out"]
    train_here(models_dir, images_dir, tmp_path / "made", *flags)
    shutil.copytree(tmp_path / "made", old)  # a copy, which this process has not locked
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for flags in ([], ["--dry_run"]):
        with pytest.raises(UserError, match="seed=2: .*activation"):
            compare.main([str(path), "--output_dir", str(tmp_path / "out"), *flags])
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    write_yaml(path, **options, report_to="none", max_train_steps=1, grid={"seed": [2]})
    compare.main([str(path), "--output_dir", str(tmp_path / "out"), "--overwrite"])
    assert json.loads((old / "run.json").read_text())["activation"] != "relu"


def test_overwriting_that_is_stopped_at_once_can_be_repeated(tmp_path, models_dir, images_dir, monkeypatch):
    def train(popen, **options):
        monkeypatch.setattr(runs, "subprocess", types.SimpleNamespace(Popen=popen, STDOUT=None))
        options = {**required_options(tmp_path, images_dir), "report_to": "none", "max_train_steps": 1, **options}
        folder = tmp_path / "out" / "runs" / "one"
        run = runs.Run("one", folder, {**options, "name": "x", "output_dir": str(folder)})
        return runs.Runner(tmp_path / "out", 1).train(run, overwrite=True), folder / "run.json"

    class Stopped(ProcessWithin):
        def __init__(self, *_, **__):
            self.code = 130

    def said():
        return (tmp_path / "out" / "logs" / "one.txt").read_text()

    shutil.copytree(models_dir / "epsilon", tmp_path / "epsilon")
    train(ProcessWithin, activation="relu")
    tiny_unet(seed=1).save_pretrained(tmp_path / "epsilon" / "unet")  # another base model, under the same options
    failed, record = train(ProcessWithin, activation="relu", max_train_steps=2)
    assert not failed and "Resuming" not in said()
    for activation, seed in (("mish", 0), ("mish", 1)):  # other options, which the trainer would refuse, too
        failed, record = train(Stopped, activation=activation, seed=seed)
        assert failed and json.loads(record.read_text())["activation"] == "relu"
    failed, record = train(ProcessWithin, activation="mish", seed=1)
    assert not failed and json.loads(record.read_text())["activation"] == "mish"
    failed, record = train(ProcessWithin, activation="mish", seed=1, max_train_steps=2)  # resumes
    assert not failed and "step-000001" in said()


def test_refuses_a_folder_without_a_run(tmp_path):
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        compare.main([str(tmp_path), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize("option", ["--jobs=2", "--dry_run", "--overwrite"])
def test_refuses_training_options_with_run_folders(tmp_path, option):
    with pytest.raises(UserError, match=option.partition("=")[0]):
        compare.main([str(tmp_path), option])


def test_makes_a_page_from_a_grid(tmp_path, models_dir, images_dir, monkeypatch, capsys):
    monkeypatch.setattr(runs, "subprocess", types.SimpleNamespace(Popen=ProcessWithin, STDOUT=None))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # otherwise it keeps the environment and folder of an earlier test in this process
    options = {
        **required_options(models_dir, images_dir),
        "max_train_steps": 4,
        "logging_steps": 2,
        "validation_split": 0.3,
        "validation_loss_steps": 2,
        "validation_prompt": ["a red star", "a cat"],
        "validation_inference_steps": 2,
        "validation_steps": 2,
    }
    # two runs, and one with a width the model lacks
    path = write_yaml(tmp_path / "my.yaml", **options, grid=[{"learning_rate": ["1e-4", "1e-2"]}, {"widths": ["999"]}])
    with pytest.raises(UserError, match=r"\b1 of 3\b"):
        compare.main([str(path)])
    (sync,) = [line for line in capsys.readouterr().out.splitlines() if "wandb sync" in line]
    assert len(list(tmp_path.glob(sync.rpartition(" ")[2]))) == 2  # one pattern for all runs
    out = tmp_path / "output" / "my"
    rows = read_csv(out / "compare.csv")
    assert [row["run"] for row in rows[2:]] == ["widths=999"] and "999" in rows[2]["problem"]
    for row in rows[:2]:
        measured = read_csv(out / "runs" / row["run"] / "validation_loss.csv")
        assert float(row["val_loss"]) == pytest.approx(float(measured[-1]["val_loss"]), abs=1e-6)
        assert float(row["val_loss_base"]) == pytest.approx(float(measured[0]["val_loss_base"]), abs=1e-6)

    assert list(rows[0])[:4] == ["run", "widths", "learning_rate", "step"]  # the options that differ, and no others
    page = (out / "compare.html").read_text()
    assert "999" in page and page.index(rows[0]["learning_rate"]) < page.index(rows[1]["learning_rate"])
    sources = re.findall(r'(?:src|href)="([^"]{,40})', page)
    # the plots; the base model and two runs for each of two prompts; a blank icon
    plots = 1 + any(row["score"] for row in rows)
    assert len(sources) == plots + 2 * 3 + 1 and all(source.startswith("data:") for source in sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", page)
    assert Image.open(out / "compare.png").width > 600

    # in W&B the runs are one group, each named after what differs, with the previews as a table
    (folder,) = (out / "runs" / rows[0]["run"] / "wandb").glob("offline-run-*")
    (log,) = folder.glob("*.wandb")
    record = next(record.run for record in read_records(log) if record.HasField("run"))
    assert (record.run_group, record.display_name) == ("my", rows[0]["run"])
    (previews, *_) = sorted(folder.glob("files/media/table/preview_table*.json"))
    previews = json.loads(previews.read_text())
    assert previews["columns"] == ["step", "prompt", "number", "preview"] and len(previews["data"]) == 2

    # a second time the finished runs and the images are kept, and the failed run is tried again
    kept = [out / "pictures", *(out / "runs" / row["run"] for row in rows[:2])]
    before, failed_log = modification_times(*kept), out / "logs" / "widths=999.txt"
    first_try = failed_log.stat().st_mtime_ns
    capsys.readouterr()
    with pytest.raises(UserError, match=r"\b1 of 3\b"):
        compare.main([str(path), "--reach", "100"])
    assert "[1/1] widths=999" in capsys.readouterr().out
    assert modification_times(*kept) == before and failed_log.stat().st_mtime_ns > first_try
    assert [row["reached"] for row in read_csv(out / "compare.csv")] == ["0", "0", ""]


def test_compares_existing_runs(tmp_path, models_dir, images_dir, capsys):
    for name, steps in (("one", 2), ("two", 3)):
        train_here(models_dir, images_dir, tmp_path / name, f"--max_train_steps={steps}", "--logging_steps=1")
        (tmp_path / name / "wandb" / f"offline-run-{name}").mkdir(parents=True)
    capsys.readouterr()
    compare.main([str(tmp_path / "one"), str(tmp_path / "two"), "--output_dir", str(tmp_path / "page")])
    printed = capsys.readouterr().out
    (sync,) = [line for line in printed.splitlines() if "wandb sync" in line]
    patterns = sync.partition("wandb sync ")[2].split()
    assert {run for pattern in patterns for run in glob.glob(pattern)} == set(map(str, tmp_path.glob("*/wandb/*")))
    rows = {row["run"]: row for row in read_csv(tmp_path / "page" / "compare.csv")}
    assert set(rows) == {"one", "two"} and rows["two"]["max_train_steps"] == "3"
    losses = [float(row["loss"]) for row in read_csv(tmp_path / "two" / "hypernetwork_loss.csv")]
    assert float(rows["two"]["last_loss"]) == pytest.approx(losses[-1])  # the last tenth of three is one
    # there is no prompt to generate images with
    assert "--prompt" in printed and not (tmp_path / "page" / "pictures").exists()


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_resumes(tmp_path, models_dir, images_dir):
    def write_grid(steps, seeds):
        options = {**required_options(models_dir, images_dir), "report_to": "none", "max_train_steps": steps}
        return write_yaml(tmp_path / "grid.yaml", **options, grid={"seed": seeds})

    command = [
        sys.executable,
        REPO / "examples" / "compare.py",
        write_grid(100000, [1, 2]),
        "--output_dir",
        tmp_path / "out",
    ]
    with forked_python():
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    first, second = (tmp_path / "out" / "runs" / f"seed={seed}" for seed in (1, 2))
    losses = first / "hypernetwork_loss.csv"
    deadline = time.monotonic() + 300
    while not losses.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    (checkpoint,) = (first / "checkpoints").iterdir()  # saved, and no process is left that writes there
    step = int(checkpoint.name.removeprefix("step-"))
    before = losses.read_bytes()
    assert not second.exists()
    with forked_python():
        compare.main([str(write_grid(step + 2, [1])), "--output_dir", str(tmp_path / "out")])
    assert {row["step"] for row in read_csv(tmp_path / "out" / "compare.csv")} == {str(step + 2)}
    assert losses.read_bytes().startswith(before)
    assert str(checkpoint) in (tmp_path / "out" / "logs" / "seed=1.txt").read_text()


def test_images_start_from_the_same_noise_whatever_the_seed_of_training(tmp_path, models_dir, images_dir):
    for seed in (1, 2):
        flags = [f"--seed={seed}", "--max_train_steps=1", "--validation_prompt", "a cat", "--weight_init=zero"]
        flags += ["--learning_rate=1e-30", "--validation_inference_steps=2", "--adam_weight_decay=0"]
        train_here(models_dir, images_dir, tmp_path / f"seed{seed}", *flags)
    compare.main([str(tmp_path / "seed1"), str(tmp_path / "seed2"), "--output_dir", str(tmp_path / "page")])
    images = [np.asarray(Image.open(path)) for path in (tmp_path / "page" / "pictures").glob("*.png")]
    # these hypernetworks change nothing, so only the noise could differ
    assert len(images) >= 2 and all((image == images[0]).all() for image in images)
    # with a limit, the runs that come first are shown
    found = compare.find_runs([tmp_path / "seed1", tmp_path / "seed2"])
    results = [read_result(each, None) for each in found]
    for order in (results, results[::-1]):
        previews = generate_previews(order, found, tmp_path / "page" / "pictures", None, limit=1)
        assert previews.columns[1:] == [order[0].run.name]


def test_sweep_has_valid_training_options(tmp_path):
    sweep = yaml.safe_load((REPO / "examples" / "configs" / "sweep.yaml").read_text())
    assert sweep["metric"]["name"] in SCORES and sweep["metric"]["goal"] == "maximize"
    values = {
        name: entry.get("value", entry.get("values", [entry.get("min")])[0])
        for name, entry in sweep["parameters"].items()
    }
    flags = [f"--{name}={value}" for name, value in values.items()]
    # as the W&B agent runs it, with an `accelerate` that only prints its arguments
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
