"""Ctrl-C, SIGTERM, the death of the launcher and of another process: the run saves, and the same command resumes."""

import re
import signal
import time

import datasets
import psutil
import pytest

from hypernet.utils.errors import UserError
from tests.helpers.scripts import LAUNCH_TWO, read_log, same_weights, start_training, step_of, train_here

QUICK = ["--learning_rate=1e-3", "--train_batch_size=3", "--logging_steps=2", "--name=x"]
ENDLESS = [*QUICK, "--checkpointing_steps=100000", "--max_train_steps=100000"]


def test_sigterm_ends_the_step_and_saves(models_dir, images_dir, tmp_path):
    """For SIGINT see test_notebook.py and test_compare.py."""
    run = tmp_path / "run"
    process = start_training(models_dir, images_dir, run, *ENDLESS)
    with pytest.raises(UserError, match="--output_dir") as error:  # meanwhile, nobody else may train in this folder
        train_here(models_dir, images_dir, run, *ENDLESS)
    assert "\n" not in str(error.value) and process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    (checkpoint,) = (run / "checkpoints").iterdir()
    step, log = int(checkpoint.name.removeprefix("step-")), read_log(run)
    assert re.search(rf"SIGTERM .* {step}\b", log) and "Traceback" not in log
    assert step_of(run) == step
    more = [*QUICK, f"--max_train_steps={step + 3}", "--checkpointing_steps=100000"]
    train_here(models_dir, images_dir, run, *more)
    train_here(models_dir, images_dir, tmp_path / "whole", *more)
    assert same_weights(run, tmp_path / "whole")
    for name in ("hypernetwork_loss.csv", f"checkpoints/step-{step + 3:06d}/optimizer.bin"):
        assert (run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_ctrl_c_stops_at_once(models_dir, images_dir, tmp_path):
    endless_step = "--gradient_accumulation_steps=1000000"
    process = start_training(models_dir, images_dir, tmp_path / "run", *QUICK, endless_step, until="Training:")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)  # waits for the step
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert "Traceback" not in read_log(tmp_path / "run")
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_the_death_of_the_launcher_counts_as_sigterm(models_dir, images_dir, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--quiet"]
    launcher = start_training(models_dir, images_dir, tmp_path / "run", *ENDLESS, launch=launch)
    *_, trainer = sorted(psutil.Process(launcher.pid).children(), key=lambda child: child.pid)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(10)
    psutil.wait_procs([trainer], timeout=60)
    assert not trainer.is_running() and re.search(r"SIGTERM .* \d+", read_log(tmp_path / "run"))
    assert step_of(tmp_path / "run" / "x.pt") > 0


def test_a_process_that_dies_ends_the_run_in_one_line(models_dir, images_dir, tmp_path):
    flags = ["--logging_steps=1", "--checkpointing_steps=5", "--max_train_steps=100000", "--checkpoints_total_limit=2"]
    run = tmp_path / "run"
    launcher = start_training(models_dir, images_dir, run, *flags, launch=LAUNCH_TWO)
    while len(list((run / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.05)
    *_, first, _ = sorted(psutil.Process(launcher.pid).children(), key=lambda child: child.pid)
    first.kill()  # the one that usually prints errors, so another one has to
    assert launcher.wait(60) != 0
    log = read_log(run)
    assert len(re.findall(r"error: .*checkpoint", log)) == 1, log[-3000:]
    printed = train_here(models_dir, images_dir, run, "--max_train_steps=1")
    assert re.search(r"checkpoints/step-\d+, step \d+\n", printed)  # an intact one


def test_a_process_that_dies_while_encoding_ends_the_run_and_what_is_encoded_is_kept(models_dir, mixed_dir, tmp_path):
    run, cache = tmp_path / "run", tmp_path / "cache"
    flags = [f"--cache_dir={cache}", "--crop=random", "--crop_variants=1000", "--max_train_steps=1"]
    launcher = start_training(models_dir, mixed_dir, run, *flags, launch=LAUNCH_TWO, until="Encoding images")
    while not re.search(r"Encoding images: +[1-9]", read_log(run)):
        time.sleep(0.01)
    *_, second = sorted(psutil.Process(launcher.pid).children(), key=lambda child: child.pid)
    second.kill()
    assert launcher.wait(60) != 0
    log = read_log(run)
    assert len(re.findall(r"^error: ", log, re.M)) == 1, log[-3000:]
    kept = cached_crops(cache)
    assert kept
    train_here(models_dir, mixed_dir, run, *flags)
    crops = cached_crops(cache)
    assert len(kept) < len(crops) == len(set(crops))  # each is encoded once


def cached_crops(cache):
    """Return the key of every encoded crop in a cache."""
    files = cache.glob("latents-*/*.arrow")
    return [key for file in files for key in datasets.Dataset.from_file(str(file))["key"]]
