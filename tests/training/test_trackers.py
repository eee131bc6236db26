"""What trackers receive; a broken file or tracker prints one line and does not end the run."""

import json
import math
import shlex
import signal
import types
from pathlib import Path

import pytest
from accelerate import Accelerator
from PIL import Image

from hypernet.cli.training_options import parse_config
from hypernet.training.failures import Failures
from hypernet.training.run_folder import RunFolder
from hypernet.training.trackers import Trackers, pad_to_same_size, sync_command, sync_line, typed_options, wandb_run
from tests.helpers.scripts import train_here
from tests.helpers.wandb_files import read_records


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def read_wandb(folder: Path) -> tuple[dict, dict]:
    """Return the config and the summary of the offline run in a run folder."""
    (log,) = folder.glob("wandb/offline-run-*/*.wandb")
    config, summary = {}, {}
    for record in read_records(log):
        for part in (record.run.config, record.config):
            config |= {item.key: json.loads(item.value_json) for item in part.update}
        for item in [*record.history.item, *record.summary.update]:
            summary[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    return config, summary


@pytest.mark.usefixtures("scored")
def test_numbers_are_numbers_in_wandb(models_dir, images_dir, tmp_path):
    flags = ["--report_to=wandb", "--max_train_steps=4", "--logging_steps=2", "--validation_split=0.3"]
    flags += ["--validation_loss_steps=2", "--learning_rate=3e-3", "--validation_prompt", "a cat", "a dog"]
    flags += ["--validation_inference_steps=1"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    config, summary = read_wandb(tmp_path / "run")
    expected = {
        "learning_rate": 3e-3,
        "max_grad_norm": 1,
        "resolution": 64,
        "clip_skip": None,
        "num_train_epochs": None,
    }
    expected |= {"layer_structure": "1,2,1", "random_flip": False, "validation_prompt": ["a cat", "a dog"]}
    assert {name: config[name] for name in expected} == expected and type(config["resolution"]) is int
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert {
        "best_val_loss",
        "best_step",
        "guard_returns",
        "val_loss",
        "val_loss_base",
        "style_distance",
    } <= result.keys()
    for name in result.keys() - {"step"}:
        assert summary[name] == pytest.approx(result[name]), name


def open_folder(tmp_path, *flags):
    required = ["--pretrained_model_name_or_path=m", "--train_data_dir=d", f"--output_dir={tmp_path}"]
    config = parse_config([*required, *flags])
    return config, RunFolder(config)


def test_a_stopped_run_has_its_summary_in_wandb(models_dir, images_dir, tmp_path, monkeypatch):
    log = Trackers.log

    def log_and_stop(self, values, step):
        log(self, values, step)
        if step == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Trackers, "log", log_and_stop)
    flags = ["--report_to=wandb", "--max_train_steps=50", "--logging_steps=2", "--validation_split=0.3"]
    flags += ["--validation_loss_steps=2", "--validation_prompt=a cat", "--validation_inference_steps=1"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    _, summary = read_wandb(tmp_path / "run")
    assert not (tmp_path / "run" / "result.json").exists()
    assert {"best_val_loss", "best_step", "guard_returns"} <= summary.keys()
    assert math.isfinite(summary["best_val_loss"]) and summary["guard_returns"] == 0


@pytest.mark.parametrize("text, value", [(None, None), ("128", 128), ("128x64", "128x64")])
def test_options_that_are_one_number_are_numbers(tmp_path, text, value):
    flags = ["--validation_prompt=a cat", *([f"--validation_resolution={text}"] if text else [])]
    config, _ = open_folder(tmp_path, "--learning_rate=5e-6:100, 5e-7:200", "--max_grad_norm=2", *flags)
    values = typed_options(config)
    expected = {"learning_rate": "5e-6:100, 5e-7:200", "max_grad_norm": 2, "validation_resolution": value}
    assert {name: values[name] for name in expected} == expected
    assert type(values["validation_resolution"]) is type(value)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"a/b\nname\n", b"\xff\xfe", b"x" * 500])
def test_a_damaged_id_is_replaced(tmp_path, content):
    config, folder = open_folder(tmp_path)
    if content is not None:
        folder.wandb_id.write_bytes(content)
    run = wandb_run(config, folder, "label")
    assert run["name"] == "label" and 8 <= len(run["id"]) <= 128
    assert wandb_run(config, folder, "another") == run


def test_an_id_without_a_name_is_kept(tmp_path):
    config, folder = open_folder(tmp_path)
    folder.wandb_id.write_text("abc123")
    run = wandb_run(config, folder, "label")
    assert (run["id"], run["name"]) == ("abc123", "label")


@pytest.mark.parametrize("resumed", [False, True])
def test_the_upload_command_names_the_run_folder_whatever_its_name(tmp_path, resumed):
    folders = [tmp_path / "a run #1" / "wandb" / f"offline-run-{day}-abc" for day in range(1 + resumed)]
    for folder in folders:
        (folder / "files").mkdir(parents=True)
    run = types.SimpleNamespace(dir=str(folders[0] / "files"), id="abc", settings=types.SimpleNamespace(mode="offline"))
    last_word = shlex.split(sync_line(run))[-1]
    assert set(tmp_path.glob(last_word.removeprefix(f"{tmp_path}/"))) == set(folders)


def test_one_command_uploads_the_offline_runs_of_several_folders(tmp_path):
    def make(name, uploaded=False, kind="offline-run-1-x"):
        (tmp_path / name / "wandb" / kind).mkdir(parents=True)
        (tmp_path / name / "wandb" / kind / f"run-x.wandb{'.synced' * uploaded}").touch()
        return tmp_path / name

    def uploads(folders):
        command, action, *patterns = shlex.split(sync_command(folders))
        assert (command, action) == ("wandb", "sync")
        found = [path for pattern in patterns for path in tmp_path.glob(pattern.removeprefix(f"{tmp_path}/"))]
        found = [path for path in found if not any(path.glob("*.synced"))]  # which W&B skips
        return len(patterns), {path.parent.parent for path in found}

    grid = [make(f"a grid #1/runs/{i}") for i in range(3)]
    assert uploads(grid) == (1, set(grid))
    make("a grid #1/runs/3", kind="run-1-x")  # online
    make("a grid #1/runs/4", uploaded=True)
    assert uploads(grid) == (1, set(grid))
    make("a grid #1/runs/of an earlier grid")
    assert uploads(grid) == (3, set(grid))
    other, done = make("elsewhere/one"), make("elsewhere/two", uploaded=True)
    assert uploads([grid[1], other, done]) == (2, {grid[1], other})
    assert sync_command([done, tmp_path / "elsewhere" / "nothing"]) is None


def test_previews_of_several_sizes_are_whole_at_one_size():
    images = [Image.effect_noise(size, 50).convert("RGB") for size in ((16, 24), (24, 16), (8, 8))]
    padded = pad_to_same_size(images)
    assert {image.size for image in padded} == {(24, 24)}
    for image, whole in zip(images, padded):
        left, top = (24 - image.width) // 2, (24 - image.height) // 2
        assert whole.crop((left, top, left + image.width, top + image.height)).tobytes() == image.tobytes()
    assert pad_to_same_size(images[:1])[0].tobytes() == images[0].tobytes()


def test_a_tracker_that_fails_is_reported_once_per_stretch(tmp_path, capsys):
    config, folder = open_folder(tmp_path / "run", "--report_to=none")

    class Broken:
        name, fails = "wandb", True

        def log(self, values, step):
            if self.fails:
                raise ConnectionError("the service\nhas died")

    accelerator, tracker = Accelerator(cpu=True), Broken()
    trackers = Trackers(accelerator, [], Failures(accelerator))
    accelerator.trackers = [tracker]
    for step, fails in enumerate([True, True, False, True]):
        tracker.fails = fails
        trackers.log({"loss": 1.0}, step)
    assert len(trackers.failures.lines) == 2
    assert capsys.readouterr().out.splitlines() == trackers.failures.lines
    trackers.finish()  # a method that this tracker lacks
    assert accelerator.trackers == []
