"""`--learning_rate auto`: the choice against curves whose answer is known, and runs against those with its number."""

import json
import math

import pytest

from hypernet.training import auto_learning_rate
from hypernet.training.auto_learning_rate import CHOSEN
from hypernet.training.lr_schedule import ScheduleError, auto_factor
from hypernet.training.range_test import BROKEN, RangeTest
from hypernet.utils.errors import UserError
from tests.helpers.scripts import read_csv, same_weights, train_here

FLAGS = ["--activation=mish", "--weight_init=kaiming_normal", "--max_train_steps=4", "--dropout_structure=0,0.3,0"]
FLAGS += ["--logging_steps=1", "--validation_split=0.3", "--validation_loss_steps=2", "--ema_decay=0.5"]
FLAGS += ["--gradient_accumulation_steps=2", "--train_batch_size=2"]


def record(folder):
    return json.loads((folder / "run.json").read_text())


def made_test(losses, perturbations=None):
    rates = [10.0**-power for power in range(len(losses), 0, -1)]
    return RangeTest(rates, losses, perturbations or [0.1] * len(losses))


@pytest.mark.parametrize(
    "losses, choice",
    [
        ([1.0, 0.99, 0.9, 0.85, 0.95], 1),
        ([1.0, 0.99, 0.97, 0.9, 1.2], 2),
        ([0.999, 0.996, 0.98, 0.965, 0.936, 0.895, 0.887, 1.03, 1.2], 3),  # at the fourth, most of the fall is over
        ([0.9, 0.85, 1.2], 0),  # it falls fastest before the first
        ([1.0, 0.9999, 0.9995, 0.9993], 1),  # of a small fall, too
        ([1.0, 0.95, 0.97, 0.7, 1.2], 0),  # the second fall follows a rise
        ([1.0, 0.95, 0.951, 0.8, 1.2], 2),  # no clear rise
        ([1.0, 0.95, 0.94, math.nan], 0),
        ([1.0001, 0.9999, 0.95, 0.91], 1),  # no clear rise either
        ([1.0, 1.0, 1.01, 1.2], None),
        ([0.99995, 1.0], None),
        ([0.99999, 1.0, 1.2, 0.9], None),  # what the loss falls by after it has risen does not count
        ([1.2, 0.9], None),
        ([math.nan], None),
    ],
)
def test_the_learning_rate_is_where_the_loss_falls_fastest(losses, choice):
    test = made_test(losses)
    assert test.choice == (None if choice is None else test.learning_rates[choice])


def test_a_test_ends_when_loss_or_perturbation_break():
    assert made_test([0.9, BROKEN + 0.01]).is_broken and made_test([0.9, math.nan]).is_broken
    assert made_test([0.9, 0.9], [0.1, 1000.0]).is_broken and made_test([0.9, 0.9], [0.1, math.nan]).is_broken
    assert not made_test([0.9, 1.05], [0.1, 40.0]).is_broken


def test_what_follows_auto_is_a_factor():
    assert auto_factor("auto") == 1 and auto_factor(" Auto ") == 1 and auto_factor("auto:0.5") == 0.5
    assert auto_factor("1e-4") is None and auto_factor("automatic") is None
    for text in ("auto:", "auto:x", "auto:0", "auto:-1", "auto:2000", "auto:nan", "auto, 1e-4", "1e-4:10,auto"):
        with pytest.raises(ScheduleError):
            auto_factor(text)


@pytest.fixture(scope="module")
def chosen(models_dir, images_dir, tmp_path_factory):
    """A finished run with `--learning_rate auto`."""
    folder = tmp_path_factory.mktemp("auto") / "run"
    train_here(models_dir, images_dir, folder, "--learning_rate=auto", *FLAGS)
    return folder


def test_a_run_equals_one_with_the_chosen_learning_rate(models_dir, images_dir, tmp_path, chosen):
    learning_rate = f"{record(chosen)[CHOSEN]:.2g}"
    assert (chosen / "learning_rate.png").is_file()
    assert json.loads((chosen / "result.json").read_text())["learning_rate"] == float(learning_rate)
    flags = [f"--learning_rate={learning_rate}", "--lr_scheduler=cosine", "--name=run"]
    train_here(models_dir, images_dir, tmp_path / "same", *flags, *FLAGS)
    assert same_weights(chosen, tmp_path / "same") and same_weights(chosen / "best", tmp_path / "same" / "best")
    for table in ("hypernetwork_loss.csv", "validation_loss.csv"):
        assert (chosen / table).read_text() == (tmp_path / "same" / table).read_text()


def test_a_resumed_run_does_not_test_again(models_dir, images_dir, chosen, monkeypatch):
    monkeypatch.setattr(auto_learning_rate, "run_range_test", None)
    before = record(chosen)[CHOSEN]
    flags = [*FLAGS, "--max_train_steps=6", "--lr_scheduler=constant"]
    train_here(models_dir, images_dir, chosen, "--learning_rate=auto", *flags)
    train_here(models_dir, images_dir, chosen, "--learning_rate=auto:0.5", *flags, "--max_train_steps=7")
    rates = read_csv(chosen / "hypernetwork_loss.csv", "learn_rate")
    assert rates[4:6] == pytest.approx([before] * 2, rel=0.05) and rates[6] == pytest.approx(before / 2, rel=0.05)
    assert record(chosen)[CHOSEN] == before and record(chosen)["learning_rate"] == "auto:0.5"


def test_a_run_that_starts_over_tests_again(models_dir, images_dir, tmp_path, monkeypatch):
    made = made_test([0.99, 0.9, 1.2])
    monkeypatch.setattr(auto_learning_rate, "run_range_test", lambda *_: made)
    train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=auto", "--max_train_steps=1")
    assert record(tmp_path / "run")[CHOSEN] == made.choice
    made = made_test([0.9, 0.95, 1.2])
    flags = ["--learning_rate=auto", "--resume_from_checkpoint=none", "--max_train_steps=1"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    assert record(tmp_path / "run")[CHOSEN] == made.choice


def test_a_loss_that_never_falls_ends_the_run_before_it_begins(models_dir, images_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_learning_rate, "run_range_test", lambda *_: made_test([1.0, 1.1]))
    with pytest.raises(UserError, match="--learning_rate auto"):
        train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=auto")
    assert not list((tmp_path / "run" / "checkpoints").iterdir())


def test_a_finished_run_reports_its_choice_again(models_dir, images_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(auto_learning_rate, "run_range_test", lambda *_: made_test([1.0, 0.99, 0.9, 1.2]))
    results = []
    for _ in range(2):
        train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=auto", "--max_train_steps=1")
        results.append(json.loads((tmp_path / "run" / "result.json").read_text())["learning_rate"])
    assert results == [made_test([1.0, 0.99, 0.9, 1.2]).choice] * 2


def test_a_finished_run_tests_nothing(models_dir, images_dir, tmp_path, monkeypatch):
    train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=1e-3", "--max_train_steps=1")
    monkeypatch.setattr(auto_learning_rate, "run_range_test", None)
    train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=auto", "--max_train_steps=1")


def test_a_choice_too_low_for_the_scheduler_ends_the_run_before_it_begins(
    models_dir, images_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(auto_learning_rate, "run_range_test", lambda *_: made_test([1.0, 0.9]))
    flags = ["--learning_rate=auto:1e-7", "--lr_scheduler=polynomial", "--max_train_steps=1"]
    with pytest.raises(UserError, match="polynomial"):
        train_here(models_dir, images_dir, tmp_path / "run", *flags)
