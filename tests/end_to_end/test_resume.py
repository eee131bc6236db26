"""What a run survives: kills, damaged checkpoints, full disks, changed options and images."""

import re
import resource
import shutil

import pytest
import torch
from accelerate.state import AcceleratorState

import train_hypernetwork
from examples.benchmarks.kill_and_resume import FLAGS, compare, content, draw_images
from hypernet.cli.training_options import parse_config
from hypernet.training import checkpoint, loss_plot
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError
from tests.helpers.forked_python import forked_python
from tests.helpers.scripts import command, read_csv, same_weights, step_of, train_here, weights

QUICK = ["--learning_rate=1e-3", "--train_batch_size=3", "--logging_steps=2", "--name=x"]


def resumed_at(printed):
    """Return the step of the checkpoint that a run says it resumes from, None if it starts from scratch."""
    found = re.search(r"checkpoints/step-(\d+), step (\d+)\n", printed)
    assert found is None or int(found[1]) == int(found[2])
    return found and int(found[1])


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resumed_equals_uninterrupted(models_dir, mixed_dir, tmp_path):
    flags = ["--learning_rate=1e-3", "--dropout_structure=0,0.3,0", "--train_batch_size=3", "--logging_steps=1"]
    flags += ["--aspect_buckets", "--resolution=128", "--latent_sampling=random", "--random_flip", "--alpha_weight"]
    flags += ["--shuffle_tags", "--tag_dropout=0.3", "--keep_tags=1", "--caption_dropout=0.2"]
    flags += ["--template=style_filewords", "--checkpointing_steps=2", "--name=x"]
    flags += ["--validation_prompt=a cat", "--validation_steps=2", "--validation_inference_steps=2"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"  # an epoch has four batches, of three sizes
    train_here(models_dir, mixed_dir, whole, *flags, "--max_train_steps=7")
    train_here(models_dir, mixed_dir, parts, *flags, "--max_train_steps=4")
    printed = train_here(models_dir, mixed_dir, parts, *flags, "--max_train_steps=7", "--checkpoints_total_limit=2")
    assert resumed_at(printed) == 4
    assert same_weights(whole / "x.pt", parts / "x.pt")
    assert (whole / "hypernetwork_loss.csv").read_text() == (parts / "hypernetwork_loss.csv").read_text()
    checkpoints = parts / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000006", "step-000007"]

    (parts / "x.pt").unlink()  # as if the run had been killed between the checkpoint and this file
    back = [*flags, "--max_train_steps=6", "--resume_from_checkpoint=step-000006"]
    printed = train_here(models_dir, mixed_dir, parts, *back)
    assert resumed_at(printed) == 6 and "--max_train_steps" in printed  # which a finished run asks for
    assert sorted(path.name for path in checkpoints.iterdir()) == ["abandoned-step-000007", "step-000006"]
    assert step_of(parts / "x.pt") == 6 and same_weights(parts / "x.pt", checkpoints / "step-000006")
    assert read_csv(parts / "hypernetwork_loss.csv", "step") == [1, 2, 3, 4, 5, 6]


def test_other_images_begin_a_new_epoch(models_dir, images_dir, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(images_dir, folder)
    flags = ["--train_batch_size=3", "--checkpointing_steps=1", "--logging_steps=1"]  # three batches per epoch
    train_here(models_dir, folder, tmp_path / "run", *flags, "--max_train_steps=4")
    for i in range(3):
        shutil.copy(folder / f"{i}.png", folder / f"copy {i}.png")
    train_here(models_dir, folder, tmp_path / "run", *flags, "--max_train_steps=6")
    rows = read_csv(tmp_path / "run" / "hypernetwork_loss.csv")
    places = [(int(row["epoch"]), int(row["epoch_step"])) for row in rows]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


@pytest.mark.usefixtures("scored")
def test_a_run_killed_twice_ends_as_if_left_alone(models_dir, tmp_path):
    draw_images(tmp_path / "images", size=64)
    flags = [f"--pretrained_model_name_or_path={models_dir / 'epsilon'}", f"--train_data_dir={tmp_path / 'images'}"]
    flags += [f"--cache_dir={tmp_path / 'cache'}", "--resolution=64", "--max_train_steps=20", *FLAGS]
    flags += ["--validation_inference_steps=1"]
    train_here(models_dir, tmp_path / "images", tmp_path / "whole", *flags)
    with forked_python():
        result = compare(tmp_path, flags, kills=2, seconds=1.5)
    assert result["kills"] == 2 and result["resumed"] >= 1 and result["files compared"] > 50
    assert result["differing"] == []


def test_a_damaged_checkpoint_is_named_and_the_previous_one_used(models_dir, images_dir, tmp_path):
    flags = [*QUICK, "--checkpointing_steps=2"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_here(models_dir, images_dir, run, *flags, "--max_train_steps=6")
    train_here(models_dir, images_dir, whole, *flags, "--max_train_steps=8")
    (run / "checkpoints" / "step-000006" / "progress.json").unlink()
    optimizer = run / "checkpoints" / "step-000004" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UserError, match="--resume_from_checkpoint step-000004: optimizer.bin"):
        train_here(models_dir, images_dir, run, *flags, "--resume_from_checkpoint=step-000004")
    printed = train_here(models_dir, images_dir, run, *flags, "--max_train_steps=8")
    assert re.search(r"step-000006 .*progress\.json", printed) and re.search(r"step-000004 .*optimizer\.bin", printed)
    assert resumed_at(printed) == 2 and same_weights(run, whole)
    assert (run / "hypernetwork_loss.csv").read_bytes() == (whole / "hypernetwork_loss.csv").read_bytes()


def test_a_run_without_an_intact_checkpoint_is_not_started_over(models_dir, images_dir, tmp_path):
    flags, run = [*QUICK, "--max_train_steps=2"], tmp_path / "run"
    train_here(models_dir, images_dir, run, *flags)
    (run / "checkpoints" / "step-000002" / "manifest.json").unlink()
    before = files_below(run)
    for more in ([], [f"--init_from={run / 'x.pt'}", "--max_train_steps=4"]):
        with pytest.raises(UserError, match="--output_dir"):
            train_here(models_dir, images_dir, run, *flags, *more)
    assert files_below(run) == before
    printed = train_here(models_dir, images_dir, run, *flags, "--resume_from_checkpoint=none")
    assert resumed_at(printed) is None and step_of(run) == 2
    assert (run / "checkpoints" / "damaged-step-000002").is_dir()


def test_a_full_disk_costs_one_save(models_dir, images_dir, tmp_path):
    flags, run = [*QUICK, "--checkpointing_steps=2", "--max_train_steps"], tmp_path / "run"
    train_here(models_dir, images_dir, run, *flags, "2")
    checkpoints = run / "checkpoints"
    before = {path: content(path) for path in checkpoints.rglob("*") if path.is_file()}
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, most))  # enough for the weights, not for the optimizer
        with pytest.raises(UserError) as error:
            train_here(models_dir, images_dir, run, *flags, "6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert "\n" not in str(error.value)
    after = {path: content(path) for path in checkpoints.rglob("*") if path.is_file()}
    assert after == before and not list(run.rglob(".*.tmp"))
    assert step_of(run) == 2
    assert resumed_at(train_here(models_dir, images_dir, run, *flags, "6")) == 2
    assert step_of(run / "x.pt") == 6


def test_a_best_state_that_could_not_be_saved_is_saved_with_the_next_checkpoint(
    models_dir, images_dir, tmp_path, monkeypatch
):
    flags = ["--learning_rate=1e-2", "--validation_split=0.3", "--validation_loss_steps=2", "--checkpointing_steps=3"]
    flags += ["--name=x", "--max_train_steps=9", "--ema_decay=0.5"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    train_here(models_dir, images_dir, whole, *flags)
    save, fails = checkpoint.save_webui, iter([False, True] + [False] * 50)

    def full_disk(*arguments, **options):
        if next(fails):
            raise OSError(28, "No space left on device")
        return save(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save_webui", full_disk)
    printed = train_here(models_dir, images_dir, run, *flags)
    assert len(re.findall(r"step 2 .*No space left", printed)) == 1
    assert same_weights(run / "best", whole / "best")
    for name in ("step-000003", "step-000006"):
        ours, theirs = (folder / "checkpoints" / name / "best" for folder in (run, whole))
        assert same_weights(ours, theirs) and step_of(ours) == step_of(theirs)
    monkeypatch.undo()
    train_here(models_dir, images_dir, run, *flags, "--resume_from_checkpoint=step-000003")
    assert same_weights(run, whole) and same_weights(run / "best", whole / "best")


def test_checkpoints_set_aside_never_replace_one_another(tmp_path):
    flags = ["--pretrained_model_name_or_path=m", "--train_data_dir=d", f"--output_dir={tmp_path}"]
    folder = RunFolder(parse_config(flags))
    for renamed in ("damaged-step-000007", "damaged-step-000007-2", "damaged-step-000007"):
        folder.checkpoint_path(7).mkdir(parents=True)
        (folder.checkpoint_path(7) / "file").write_text("x")
        (line,) = folder.roll_back_to(5)
        assert line.split()[0] == "step-000007" and line.split()[-1] == renamed
        if renamed.endswith("-2"):
            shutil.rmtree(folder.checkpoints / "damaged-step-000007")  # as pruning may do
    assert len(list(folder.checkpoints.iterdir())) == 2


def test_a_changed_learning_rate_applies_at_once_and_is_printed(models_dir, images_dir, tmp_path):
    flags = ["--logging_steps=1", "--checkpointing_steps=2", "--max_train_steps"]
    train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=1e-3", *flags, "2")
    changed = ["--learning_rate=1e-4", "--lr_scheduler=linear"]
    printed = train_here(models_dir, images_dir, tmp_path / "run", *changed, *flags, "4")
    assert re.search("--learning_rate .*1e-3.*1e-4", printed) and re.search(
        "--lr_scheduler .*constant.*linear", printed
    )
    rates = read_csv(tmp_path / "run" / "hypernetwork_loss.csv", "learn_rate")
    assert rates == pytest.approx([1e-3, 1e-3, 0.5e-4, 0.25e-4])


def test_the_ema_is_what_is_exported(models_dir, images_dir, tmp_path):
    flags = ["--learning_rate=1e-2", "--max_train_steps=5", "--checkpointing_steps=1"]
    train_here(models_dir, images_dir, tmp_path / "plain", *flags)
    train_here(models_dir, images_dir, tmp_path / "average", *flags, "--ema_decay=0.3")
    steps = [weights(tmp_path / "plain" / "checkpoints" / f"step-{step:06d}") for step in range(1, 6)]
    expected = steps[0]
    for n, after in enumerate(steps[1:], 2):
        decay = min(0.3, n / (9 + n))
        expected = {key: decay * expected[key] + (1 - decay) * after[key] for key in after}
    for path in ("", "average.pt", "checkpoints/step-000005"):
        averaged = weights(tmp_path / "average" / path)
        assert all(torch.allclose(averaged[key], expected[key], atol=1e-7) for key in expected), path
    raw = torch.load(tmp_path / "average" / "checkpoints" / "step-000005" / "average.pt", weights_only=True)["weights"]
    assert all(torch.equal(raw[key], steps[-1][key]) for key in raw)


def test_a_diverged_run_saves_only_finite_weights(models_dir, images_dir, tmp_path):
    flags = ["--learning_rate=1e30", "--max_grad_norm=0", "--checkpointing_steps=3", "--logging_steps=50"]
    arguments = command(models_dir, images_dir, tmp_path / "run", "--cache_dir", models_dir / "cache", *flags)
    AcceleratorState._reset_state(True)
    with pytest.raises(UserError, match=" step 12: .* 4 times.*--learning_rate"):
        train_hypernetwork.main(parse_config(arguments))
    factors = read_csv(tmp_path / "run" / "guard.csv", "learning_rate_factor")
    assert factors == pytest.approx([0.1, 0.01, 0.001, 0.001])
    saved = [tmp_path / "run", *(tmp_path / "run" / "checkpoints").iterdir()]
    assert len(saved) == 4  # one after each rollback, so that a resumed run remembers it
    for folder in saved:
        assert all(weight.isfinite().all() for weight in weights(folder).values())


def test_without_validation_images_a_run_rolls_back_to_the_last_checkpoint(models_dir, images_dir, tmp_path):
    flags, run = ["--checkpointing_steps=2", "--logging_steps=1", "--name=x"], tmp_path / "run"
    train_here(models_dir, images_dir, run, *flags, "--learning_rate=1e-3", "--max_train_steps=2")
    good = weights(run)
    too_high = ["--max_train_steps=9", "--learning_rate=1e35", "--clip_grad_mode=none"]
    with pytest.raises(UserError, match=" 4 times.*--learning_rate"):
        train_here(models_dir, images_dir, run, *flags, *too_high)
    assert all(torch.equal(good[key], value) for key, value in weights(run).items())
    train_here(models_dir, images_dir, run, *flags, "--max_train_steps=9", "--learning_rate=1e-4")
    assert step_of(run) == 9
    assert read_csv(run / "hypernetwork_loss.csv", "learn_rate")[-1] == 1e-4  # the guard's factor is reset


def test_a_plot_that_cannot_be_drawn_does_not_end_a_run(models_dir, images_dir, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("Key backend: 'bogus' is not a valid value")

    monkeypatch.setattr(loss_plot, "plot_losses", broken)
    printed = train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=2", "--logging_steps=1")
    assert len(re.findall(r"loss\.png .*'bogus'", printed)) == 1
    assert (tmp_path / "run" / "result.json").is_file() and (tmp_path / "run" / "README.md").is_file()
