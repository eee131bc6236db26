"""The disk space of a run, against what it writes."""

import shutil
import types

import pytest

from hypernet.config import TrainingConfig
from hypernet.training import disk_forecast, learning_notes, time_forecast
from hypernet.training.disk_forecast import DiskForecast, describe_disk, disk_use
from hypernet.utils.errors import UserError
from tests.helpers.scripts import train_here

MB = 10**6
FORECAST = DiskForecast(weights=88 * MB, checkpoint=264 * MB, best=0, count=20, previews=5 * MB, cache=50 * MB)


def with_free(monkeypatch, size):
    """Let every disk have this much free space."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=size))


@pytest.fixture(scope="module")
def trained(models_dir, images_dir, tmp_path_factory):
    """A run with every kind of file, its forecast, and what it has printed."""
    made = []
    original = disk_forecast.describe_disk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time_forecast, "WARMUP", 0)
        patch.setattr(time_forecast, "MAX_STEPS", 2)
        patch.setattr(learning_notes, "FEW_STEPS", 1)
        patch.setattr(learning_notes, "LEAST_CHANGE", 1e9)
        patch.setattr(disk_forecast, "describe_disk", lambda *given: made.append(given[1]) or original(*given))
        output = tmp_path_factory.mktemp("disk") / "ink"
        flags = ["--max_train_steps=4", "--checkpointing_steps=1", "--ema_decay=0.9", "--layer_structure=1,16,1"]
        flags += ["--validation_split=0.3", "--validation_loss_steps=1", "--learning_rate=1e-3"]
        printed = train_here(models_dir, images_dir, output, *flags)
    return output, made[0], printed


def test_counts_what_a_run_writes(trained):
    output, forecast, _ = trained
    weights = output / "diffusion_pytorch_model.safetensors"
    assert forecast.weights == pytest.approx(weights.stat().st_size, rel=0.02)
    used = disk_use([output / "checkpoints", output / "best", output]) - disk_use([output / "previews"])
    assert forecast.count == 4 and 0.95 * forecast.at_end < used < 1.1 * forecast.most
    newest = output / "checkpoints" / "step-000004"
    assert forecast.best == pytest.approx(disk_use([newest / "best"]), rel=0.1)
    assert forecast.checkpoint == pytest.approx(disk_use([newest]) - disk_use([newest / "best"]), rel=0.1)


def test_hard_links_count_once(tmp_path):
    (tmp_path / "a").write_bytes(b"0" * 1000)
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").hardlink_to(tmp_path / "a")
    assert disk_use([tmp_path, tmp_path / "none"]) == 1000


@pytest.mark.parametrize("limit, count", [(None, 20), (3, 3)])
def test_a_disk_without_room_for_all_checkpoints_is_noted(monkeypatch, limit, count):
    config = TrainingConfig(output_dir="out", checkpoints_total_limit=limit)
    forecast = DiskForecast(**{**vars(FORECAST), "count": count})
    all_notes = []
    for free in (forecast.at_end - 1, forecast.most - 1):
        with_free(monkeypatch, free)
        _, note = describe_disk(config, forecast, 0).splitlines()
        assert note.startswith("note: --output_dir out: ")
        assert ("--checkpoints_total_limit 3" in note) == (limit is None)
        all_notes.append(note)
    assert len(set(all_notes)) == 2  # it will fill up; it may
    with_free(monkeypatch, forecast.most)
    assert len(describe_disk(config, forecast, 0).splitlines()) == 1


def test_a_disk_without_room_for_one_checkpoint_is_refused(monkeypatch):
    config = TrainingConfig(output_dir="out")
    with_free(monkeypatch, FORECAST.least)
    assert describe_disk(config, FORECAST, 0)
    with_free(monkeypatch, FORECAST.least - 1)
    with pytest.raises(UserError, match="^--output_dir out: .*another disk$"):
        describe_disk(config, FORECAST, 0)
    assert describe_disk(config, FORECAST, 1)  # what is there already need not be written


def test_the_suggested_limit_fits(monkeypatch):
    with_free(monkeypatch, (2 * 88 + 3 * 264 + 1) * MB)  # two checkpoints, and one that is being written
    assert describe_disk(TrainingConfig(), FORECAST, 0).endswith("--checkpoints_total_limit 2")


def test_a_run_ends_before_it_encodes_anything(models_dir, images_dir, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free._replace(free=1000))
    with pytest.raises(UserError, match="--output_dir"):
        train_here(models_dir, images_dir, tmp_path / "ink", f"--cache_dir={tmp_path / 'cache'}", "--max_train_steps=1")
    assert not (tmp_path / "ink").exists() and not list((tmp_path / "cache").rglob("latents*"))


def test_a_full_cache_disk_is_named_before_the_images_are_encoded(models_dir, images_dir, tmp_path, monkeypatch):
    free, cache = shutil.disk_usage(tmp_path), tmp_path / "cache"

    def disk_usage(path):
        return free._replace(free=100 if cache in (path, *path.parents) else 10**12)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    with pytest.raises(UserError, match="--cache_dir"):
        train_here(models_dir, images_dir, tmp_path / "ink", f"--cache_dir={cache}", "--max_train_steps=1")
    assert not (tmp_path / "ink").exists() and not list(cache.rglob("latents*/*.arrow"))


def test_the_console_says_what_the_run_takes_and_has_learned(trained):
    output, _, printed = trained
    lines = printed.splitlines()
    (disk,) = [line for line in lines if line.startswith("disk space: ")]
    assert str(output) in disk and "4 checkpoints" in disk
    (length,) = [line for line in lines if line.startswith("the run has ")]
    assert "4 steps" in length
    (rest,) = [line for line in lines if line.startswith("the rest takes about ")]
    assert "2 x" in rest and "for validation" in rest and "for checkpoints" in rest
    (note,) = [line for line in lines if line.startswith("note: next to nothing")]
    assert "--learning_rate" in note
