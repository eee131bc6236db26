"""Tables, plots, trackers, previews and the console may fail without ending a run. The weights are saved."""

import contextlib
import json
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

from hypernet.cli.console import protected
from hypernet.training import loss_plot, preview_scores
from hypernet.training.previews import Previewer
from hypernet.training.validation import ValidationLoss
from tests.helpers.scripts import read_csv, same_weights, step_of, train_here

FLAGS = ["--learning_rate=1e-3", "--train_batch_size=3", "--logging_steps=1", "--name=x", "--max_train_steps=6"]
# Tiny models with random weights see nothing in images, so their prompt fidelity is noise
MEASURED = ["--validation_split=0.3", "--validation_loss_steps=2", "--min_prompt_fidelity=0"]
PREVIEWED = ["--validation_prompt=a cat", "--validation_steps=2", "--validation_inference_steps=3"]
TABLES = ("hypernetwork_loss.csv", "validation_loss.csv", "metrics.csv", "scores.csv", "guard.csv")
EXACT_TABLES = ("hypernetwork_loss.csv", "validation_loss.csv")  # without times


@contextlib.contextmanager
def locked(folder: Path):
    """Make the tables of a run impossible to read, write and replace."""
    for name in TABLES:
        if (folder / name).exists():
            (folder / name).rename(folder / f"{name} elsewhere")
        (folder / name).mkdir()
    yield
    for name in TABLES:
        (folder / name).rmdir()
        if (folder / f"{name} elsewhere").exists():
            (folder / f"{name} elsewhere").rename(folder / name)


def test_when_all_else_fails_every_checkpoint_is_saved(models_dir, images_dir, tmp_path, monkeypatch):
    flags = [*FLAGS, *MEASURED, *PREVIEWED, "--checkpointing_steps=2", "--report_to=tensorboard"]
    whole, run = tmp_path / "whole", tmp_path / "run"
    train_here(models_dir, images_dir, whole, *flags)
    train_here(models_dir, images_dir, run, *flags, "--max_train_steps=2")
    for name in ("logs", "previews"):  # files in place of folders, which TensorBoard and images need
        shutil.rmtree(run / name)
        (run / name).touch()

    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch, locked(run), open("/dev/full", "w") as full:
        patch.setattr(loss_plot, "plot_losses", fail)
        patch.setattr(Previewer, "sample_prompt", fail)
        patch.setattr(contextlib, "redirect_stdout", lambda _: contextlib.nullcontext())  # of `train_here`
        patch.setattr("sys.stdout", protected(full, lambda error: None))
        train_here(models_dir, images_dir, run, *flags)
    failures = json.loads((run / "result.json").read_text())["failures"]
    for named in (*TABLES[:3], "loss.png", "TensorBoard", "previews"):
        assert sum(named in line for line in failures) in (1, 2), failures  # at the first failure, and at the end
    assert all("\n" not in line and ".tmp" not in line for line in failures)
    for step in (2, 4, 6):
        assert same_weights(*(folder / "checkpoints" / f"step-{step:06d}" for folder in (whole, run)))
    assert same_weights(whole / "x.pt", run / "x.pt") and same_weights(whole / "best", run / "best")

    (run / "logs").unlink()
    (run / "previews").unlink()
    printed = train_here(models_dir, images_dir, run, *flags)  # what could not be written is in the checkpoint
    assert re.search(r"checkpoints/step-000006, step 6\n", printed)
    assert "failures" not in json.loads((run / "result.json").read_text())
    for name in (*EXACT_TABLES, "previews/before_after.png"):
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name
    assert read_csv(run / "metrics.csv", "step") == [1, 2, 3, 4, 5, 6]


def test_tables_that_a_spreadsheet_has_saved_are_continued(models_dir, images_dir, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = [*FLAGS, *MEASURED]
    train_here(models_dir, images_dir, whole, *flags)
    train_here(models_dir, images_dir, run, *flags, "--max_train_steps=4")
    losses, validation, metrics = (run / name for name in TABLES[:3])
    content = losses.read_text().replace(",", ";").replace(".", ",")
    losses.write_text(content, encoding="utf-8-sig", newline="\n")
    validation.write_bytes(validation.read_bytes().replace(b"\n4,", b"\n4,\xff"))
    header, *rows = metrics.read_bytes().splitlines(keepends=True)
    metrics.write_bytes(b"".join(rows))
    printed = train_here(models_dir, images_dir, run, *flags)
    assert losses.read_bytes() == (whole / losses.name).read_bytes()
    assert read_csv(validation, "step") == [0, 2, 6] and read_csv(metrics, "step") == [5, 6]
    assert metrics.with_name("metrics-damaged.csv").read_bytes() == b"".join(rows)
    for path in (validation, metrics):
        assert len(re.findall(rf"{path.name}.*{path.stem}-damaged\.csv", printed)) == 1
    assert same_weights(whole, run)


def interrupt(monkeypatch, kind, method, call):
    """Send SIGTERM to this process in the given call of a method or function; return the calls so far."""
    calls, original = [], getattr(kind, method)

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            signal.raise_signal(signal.SIGTERM)
        return original(*arguments, **options)

    monkeypatch.setattr(kind, method, interrupted)
    return calls


@pytest.mark.usefixtures("scored")
@pytest.mark.parametrize("during", ["previews", "validation", "scoring"])
def test_a_signal_in_the_middle_of_a_measurement(models_dir, images_dir, tmp_path, monkeypatch, during):
    whole, run = tmp_path / "whole", tmp_path / "run"
    flags = [*FLAGS, *MEASURED, *PREVIEWED, "--checkpointing_steps=6", "--dropout_structure=0,0.3,0"]
    flags += ["--validation_steps=3"]
    train_here(models_dir, images_dir, whole, *flags)
    step = 3 if during == "previews" else 2
    with monkeypatch.context() as patch:
        if during == "previews":
            # three denoising steps of the preview, three at step 0, and three at step 2, to score them; the second at
            # step 3 (the images in the base model's style are cached)
            call = 3 + 3 + 3 + 2
            calls = interrupt(patch, DDIMScheduler, "step", call)
        elif during == "validation":  # two images without the hypernetwork, two at step 0; the first after step 2
            call = 2 + 2 + 1
            calls = interrupt(patch, ValidationLoss, "_losses", call)
        else:  # an image without the hypernetwork, one at step 0; the one after step 2
            call = 1 + 1 + 1
            calls = interrupt(patch, preview_scores, "prompt_margin", call)
        printed = train_here(models_dir, images_dir, run, *flags)
    assert len(calls) == call and re.search(rf"SIGTERM .*\b{step};", printed), printed
    assert step_of(run) == step and [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{step:06d}"]
    assert [path.name for path in (run / "previews").iterdir()] == ["step-000000.png"] and not list(run.rglob(".*.tmp"))
    for table in ("validation_loss.csv", "scores.csv"):
        assert read_csv(run / table, "step") == ([0, 2] if during == "previews" else [0])
    train_here(models_dir, images_dir, run, *flags)
    last = "checkpoints/step-000006"
    for path in ("", "best", last, f"{last}/best"):
        assert same_weights(whole / path, run / path) and step_of(whole / path) == step_of(run / path)
    assert read_csv(whole / "scores.csv", "step") == [0, 2, 3, 4, 6]
    files = [
        *EXACT_TABLES,
        "scores.csv",
        f"{last}/progress.json",
        *(f"previews/{path.name}" for path in (whole / "previews").iterdir()),
    ]
    for name in files:
        assert (run / name).read_bytes() == (whole / name).read_bytes(), name


def test_a_signal_in_the_last_previews_leaves_them_to_the_next_run(models_dir, images_dir, tmp_path, monkeypatch):
    run, flags = tmp_path / "run", [*FLAGS, *PREVIEWED]
    with monkeypatch.context() as patch:
        interrupt(patch, DDIMScheduler, "step", 3 + 2 * 3 + 2)
        printed = train_here(models_dir, images_dir, run, *flags)
    assert re.search(r"SIGTERM .*\b6;", printed) and step_of(run) == 6
    assert not (run / "result.json").exists() and not (run / "previews" / "before_after.png").exists()
    train_here(models_dir, images_dir, run, *flags)
    assert (run / "result.json").exists() and (run / "previews" / "before_after.png").exists()
