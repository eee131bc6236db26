"""What a run survives: kills, signals, damaged states, full disks, rates that are far too high, dying neighbours."""

import csv
import math
import resource
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

import hypernet
from examples.benchmarks.kill_and_resume import FLAGS, compare, content, draw_pictures
from hypernet.cli.training_options import parse_config
from hypernet.training import divergence_guard as guard
from hypernet.training import loss_plot as plot
from hypernet.training.run_folder import RunFolder
from hypernet.utils.errors import UserError
from tests.end_to_end.test_train import LAUNCH_TWO, command
from tests.helpers.scripts import REPO, train_here

QUICK = ["--learning_rate=1e-3", "--train_batch_size=3", "--logging_steps=2", "--name=x"]


def weights(path):
    return hypernet.load(path).state_dict()


def same(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_killed_twice_it_ends_as_if_left_alone(models_dir, tmp_path):
    draw_pictures(tmp_path / "images", size=64)
    flags = [f"--pretrained_model_name_or_path={models_dir / 'epsilon'}", f"--train_data_dir={tmp_path / 'images'}"]
    flags += [f"--cache_dir={tmp_path / 'cache'}", "--resolution=64", "--max_train_steps=20", *FLAGS]
    train_here(models_dir, tmp_path / "images", tmp_path / "whole", *flags)
    result = compare(tmp_path, flags, kills=2, seconds=1.5)
    assert result["kills"] == 2 and result["resumed"] >= 1 and result["files compared"] > 50
    assert result["differing"] == []


def start_training(models_dir, images_dir, output, *flags, launch=(), begun=None):
    """The script, when it has said `begun`, or else when it has logged its first steps."""
    script = [sys.executable, *launch, str(REPO / "train_hypernetwork.py")]
    arguments = [*command(models_dir, images_dir, output, "--cache_dir", str(models_dir / "cache")), *flags]
    with open(f"{output}.log", "w") as log:
        process = subprocess.Popen([*script, *arguments], stdout=log, stderr=subprocess.STDOUT, cwd=REPO)
    deadline = time.monotonic() + 120
    while not (begun in open(f"{output}.log").read() if begun else (output / "hypernetwork_loss.csv").exists()):
        assert process.poll() is None and time.monotonic() < deadline, open(f"{output}.log").read()[-3000:]
        time.sleep(0.01)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_step_saves_and_the_same_command_goes_on(models_dir, images_dir, tmp_path, number):
    endless = [*QUICK, "--checkpointing_steps=100000", "--max_train_steps=100000"]
    process = start_training(models_dir, images_dir, tmp_path / "run", *endless)
    if number == signal.SIGTERM:
        with pytest.raises(UserError, match="run: another process is training in it at this moment") as error:
            train_here(models_dir, images_dir, tmp_path / "run", *endless)
        assert "\n" not in str(error.value) and process.poll() is None
    process.send_signal(number)
    assert process.wait(60) == 0
    said = open(f"{tmp_path / 'run'}.log").read()
    (state,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(state.name.removeprefix("step-"))
    assert f"stopped by {number.name} after step {step}; saved; the same command goes on from there" in said
    assert "Traceback" not in said and hypernet.load(tmp_path / "run").config.step == step
    if number == signal.SIGTERM:
        more = [*QUICK, f"--max_train_steps={step + 3}", "--checkpointing_steps=100000"]
        assert f"step {step}\n" in train_here(models_dir, images_dir, tmp_path / "run", *more)
        train_here(models_dir, images_dir, tmp_path / "whole", *more)
        assert same(tmp_path / "run", tmp_path / "whole")
        for name in ("hypernetwork_loss.csv", f"checkpoints/step-{step + 3:06d}/optimizer.bin"):
            assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_second_interrupt_stops_at_once(models_dir, images_dir, tmp_path):
    endless_step = "--gradient_accumulation_steps=1000000"
    process = start_training(models_dir, images_dir, tmp_path / "run", *QUICK, endless_step, begun="Training:")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)  # the step would have to end first
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    said = open(f"{tmp_path / 'run'}.log").read()
    assert "Traceback" not in said and "stopped; the same command goes on from the last training state" in said
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_a_damaged_state_is_named_and_the_one_before_is_used(models_dir, images_dir, tmp_path):
    flags = [*QUICK, "--checkpointing_steps=2"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags, "--max_train_steps=6")
    train_here(models_dir, images_dir, tmp_path / "whole", *flags, "--max_train_steps=8")
    states = tmp_path / "run" / "checkpoints"
    (states / "step-000006" / "progress.json").unlink()
    optimizer = states / "step-000004" / "optimizer.bin"
    optimizer.write_bytes(optimizer.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UserError, match="--resume_from_checkpoint step-000004: optimizer.bin is damaged; name another"):
        train_here(models_dir, images_dir, tmp_path / "run", *flags, "--resume_from_checkpoint=step-000004")
    said = train_here(models_dir, images_dir, tmp_path / "run", *flags, "--max_train_steps=8")
    assert "step-000006 is not used: progress.json is missing" in said
    assert "step-000004 is not used: optimizer.bin is damaged" in said and "step-000002, step 2\n" in said
    assert same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/hypernetwork_loss.csv").read_bytes() == (
        tmp_path / "whole/hypernetwork_loss.csv"
    ).read_bytes()


def test_no_state_that_is_whole_is_no_reason_to_begin_again(models_dir, images_dir, tmp_path):
    flags = [*QUICK, "--max_train_steps=2"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    (tmp_path / "run" / "checkpoints" / "step-000002" / "manifest.json").unlink()
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    for more in ([], [f"--init_from={tmp_path / 'run' / 'x.pt'}", "--max_train_steps=4"]):
        with pytest.raises(UserError, match="none of its 1 training states is whole|holds another run"):
            train_here(models_dir, images_dir, tmp_path / "run", *flags, *more)
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    assert "2 steps in" in train_here(models_dir, images_dir, tmp_path / "run", *flags, "--resume_from_checkpoint=none")
    assert (tmp_path / "run" / "checkpoints" / "damaged-step-000002").is_dir()


@pytest.mark.parametrize("answer", ["continue", "stop"])
def test_a_full_disk_costs_one_save(models_dir, images_dir, tmp_path, answer):
    flags = [*QUICK, "--checkpointing_steps=2", f"--on_save_error={answer}", "--max_train_steps"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags, "2")
    before = {path: content(path) for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = "step 4 could not be saved" if answer == "stop" else "the run ends without having been saved"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, most))  # enough for the weights, not for the optimizer
        with pytest.raises(UserError, match=message) as error:
            train_here(models_dir, images_dir, tmp_path / "run", *flags, "6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
    assert "\n" not in str(error.value)
    after = {path: content(path) for path in (tmp_path / "run" / "checkpoints").rglob("*") if path.is_file()}
    assert after == before and not list((tmp_path / "run").rglob(".*.tmp"))
    assert hypernet.load(tmp_path / "run").config.step == 2
    assert "step 2\n" in train_here(models_dir, images_dir, tmp_path / "run", *flags, "6")
    assert hypernet.load(tmp_path / "run" / "x.pt").config.step == 6


def test_states_that_are_set_aside_never_replace_one_another(tmp_path):
    output = RunFolder(
        parse_config(["--pretrained_model_name_or_path=m", "--train_data_dir=d", f"--output_dir={tmp_path}"])
    )
    for aside in ("damaged-step-000007", "damaged-step-000007-2", "damaged-step-000007"):
        output.checkpoint(7).mkdir(parents=True)
        (output.checkpoint(7) / "file").write_text("x")
        assert output.roll_back_to(5) == [f"step-000007 is now {aside}"]
        if aside.endswith("-2"):
            shutil.rmtree(output.checkpoints / "damaged-step-000007")  # as pruning may do
    assert len(list(output.checkpoints.iterdir())) == 2


def test_a_changed_rate_holds_at_once_and_is_told(models_dir, images_dir, tmp_path):
    flags = ["--logging_steps=1", "--checkpointing_steps=2", "--max_train_steps"]
    train_here(models_dir, images_dir, tmp_path / "run", "--learning_rate=1e-3", *flags, "2")
    said = train_here(
        models_dir, images_dir, tmp_path / "run", "--learning_rate=1e-4", "--lr_scheduler=linear", *flags, "4"
    )
    assert "--learning_rate was 1e-3, is now 1e-4" in said and "--lr_scheduler was constant, is now linear" in said
    rates = [float(row["learn_rate"]) for row in csv.DictReader(open(tmp_path / "run" / "hypernetwork_loss.csv"))]
    assert rates == pytest.approx([1e-3, 1e-3, 0.5e-4, 0.25e-4])


def test_the_average_is_what_is_exported(models_dir, images_dir, tmp_path):
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


def test_the_guard_ends_a_run_that_cannot_learn(images_dir, tmp_path):
    """Every rate is too high, even a thousandth of it: three returns, then the best state is what is exported."""
    flags = ["--learning_rate=1e4", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=1"]
    flags += ["--max_train_steps=60", "--checkpointing_steps=1000", "--name=x", f"--cache_dir={tmp_path / 'cache'}"]
    said = train_here(REPO / "examples" / "quickstart", images_dir, tmp_path / "run", *flags, model="model")
    events = list(csv.DictReader(open(tmp_path / "run" / "guard.csv")))
    assert [event["learning_rate_factor"] for event in events] == ["0.1", "0.01", "0.001", "0.001"]
    assert all("it drowns what attention is given" in event["event"] for event in events)
    assert events[-1]["event"].endswith("goes back to the best state, of step 0 and ends there")
    assert hypernet.load(tmp_path / "run" / "best").config.step == 0
    assert same(tmp_path / "run", tmp_path / "run" / "best") and "held-out loss" in said


def test_without_held_out_images_it_goes_back_to_the_last_state(models_dir, images_dir, tmp_path, monkeypatch):
    flags = ["--checkpointing_steps=2", "--logging_steps=1", "--name=x", "--learning_rate=1e-3", "--max_train_steps"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags, "2")
    good = weights(tmp_path / "run")
    with pytest.raises(UserError, match="the run has died 4 times, at ever lower rates"):
        train_here(
            models_dir, images_dir, tmp_path / "run", *flags, "9", "--learning_rate=1e35", "--clip_grad_mode=none"
        )
    assert all(torch.equal(good[key], value) for key, value in weights(tmp_path / "run").items())
    said = train_here(models_dir, images_dir, tmp_path / "run", *flags, "9", "--learning_rate=1e-4")
    assert "9 steps" in said and "times the learning rate goes on" not in said  # a new rate is trusted
    rates = [float(row["learn_rate"]) for row in csv.DictReader(open(tmp_path / "run" / "hypernetwork_loss.csv"))]
    assert rates[-1] == 1e-4


def test_a_curve_that_cannot_be_drawn_ends_no_run(models_dir, images_dir, tmp_path, monkeypatch):
    def broken(*_):
        raise ValueError("Key backend: 'bogus' is not a valid value")

    monkeypatch.setattr(plot, "plot_losses", broken)
    said = train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=2", "--logging_steps=1")
    assert said.count("loss.png could not be drawn (Key backend: 'bogus' is not a valid value)") == 1
    assert (tmp_path / "run" / "result.json").is_file() and (tmp_path / "run" / "README.md").is_file()


def test_a_best_state_that_could_not_be_saved_is_saved_with_the_next_one(models_dir, images_dir, tmp_path, monkeypatch):
    flags = ["--learning_rate=1e-2", "--validation_split=0.3", "--validation_loss_steps=2", "--checkpointing_steps=3"]
    flags += ["--name=x", "--max_train_steps=9", "--ema_decay=0.5"]
    train_here(models_dir, images_dir, tmp_path / "whole", *flags)
    save, fails = hypernet.save_webui, iter([False, True] + [False] * 50)

    def full(*arguments, **options):
        if "best" in str(arguments[1]) and next(fails):
            raise OSError(28, "No space left on device")
        return save(*arguments, **options)

    monkeypatch.setattr(hypernet, "save_webui", full)
    said = train_here(models_dir, images_dir, tmp_path / "run", *flags)
    assert "the best state, of step 2 could not be saved ([Errno 28]" in said
    assert same(tmp_path / "run" / "best", tmp_path / "whole" / "best")
    for state in ("step-000003", "step-000006"):
        ours, theirs = (tmp_path / run / "checkpoints" / state / "best" for run in ("run", "whole"))
        assert same(ours, theirs) and hypernet.load(ours).config.step == hypernet.load(theirs).config.step
    monkeypatch.undo()
    parts = tmp_path / "run"
    train_here(models_dir, images_dir, parts, *flags, "--resume_from_checkpoint=step-000003")
    assert same(parts, tmp_path / "whole") and same(parts / "best", tmp_path / "whole" / "best")


def test_the_end_of_the_launcher_is_a_signal(models_dir, images_dir, tmp_path):
    launch = ["-m", "accelerate.commands.launch", "--quiet"]
    launcher = start_training(
        models_dir, images_dir, tmp_path / "run", *QUICK, "--max_train_steps=100000", launch=launch
    )
    (trainer,) = psutil.Process(launcher.pid).children()
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(10)
    psutil.wait_procs([trainer], timeout=60)
    said = open(f"{tmp_path / 'run'}.log").read()
    assert not trainer.is_running() and "stopped by SIGTERM after step" in said
    assert hypernet.load(tmp_path / "run" / "x.pt").config.step > 0


def test_the_guard_takes_back_a_rate_that_is_too_high(images_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MAX_PERTURBATION", math.inf)  # what the loss alone says
    flags = ["--learning_rate=1", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=2"]
    flags += ["--max_train_steps=20", "--checkpointing_steps=7", "--logging_steps=5", "--name=x"]
    flags += [f"--cache_dir={tmp_path / 'cache'}"]
    quickstart = (REPO / "examples" / "quickstart", images_dir)  # what it draws can be ruined, unlike noise
    said = train_here(*quickstart, tmp_path / "guarded", *flags, model="model")
    train_here(*quickstart, tmp_path / "free", *flags, "--no_guard", model="model")
    measured = {}
    for name in ("guarded", "free"):
        rows = list(csv.DictReader(open(tmp_path / name / "validation_loss.csv")))
        measured[name] = [float(row["val_loss"]) for row in rows]
        best = min(measured[name])
        step = int(rows[measured[name].index(best)]["step"])
        assert hypernet.load(tmp_path / name / "best" / "x.pt").config.step == step
        assert same(tmp_path / name / "best", tmp_path / name / "best" / "x.pt")
        base = float(rows[0]["val_loss_base"])
    assert max(measured["free"]) > 1.3 * base  # what it would have come to
    assert "goes back to the best state, of step" in said and "at 0.1 times the learning rate" in said
    events = list(csv.DictReader(open(tmp_path / "guarded" / "guard.csv")))
    assert [float(event["learning_rate_factor"]) for event in events[:1]] == [0.1]
    rates = {float(row["learn_rate"]) for row in csv.DictReader(open(tmp_path / "guarded" / "hypernetwork_loss.csv"))}
    assert {1.0, 0.1} <= {round(rate, 9) for rate in rates}
    exported = (
        min(measured["guarded"])
        if "the run ends with that state" in said or "ends there" in said
        else measured["guarded"][-1]
    )
    assert exported <= base and same(tmp_path / "guarded" / "best", tmp_path / "guarded") == (
        exported == min(measured["guarded"])
    )
    assert not (tmp_path / "free" / "guard.csv").exists()


def test_going_back_is_exact_over_a_resume(models_dir, images_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "MAX_PERTURBATION", math.inf)  # what the loss alone says
    flags = ["--learning_rate=3", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=2"]
    flags += ["--checkpointing_steps=7", "--logging_steps=5", "--name=x", "--ema_decay=0.5", "--max_train_steps"]
    whole = tmp_path / "whole"
    train_here(models_dir, images_dir, whole, *flags, "42")
    (event, *_) = csv.DictReader(open(whole / "guard.csv"))
    after = int(event["step"]) // 7 * 7 + 7  # the first state after the return, whose step depends on the processor
    assert 7 < int(event["step"]) and after < 42  # so the first resume lies before the return, the last one after it
    for step in (7, after):  # with other best states than in the end
        parts = tmp_path / f"from {step}"
        shutil.copytree(whole, parts)
        train_here(models_dir, images_dir, parts, *flags, "42", f"--resume_from_checkpoint=step-{step:06d}")
        assert same(whole, parts) and same(whole / "best", parts / "best"), step
        for name in (
            "hypernetwork_loss.csv",
            "validation_loss.csv",
            "guard.csv",
            "checkpoints/step-000042/optimizer.bin",
        ):
            assert (whole / name).read_bytes() == (parts / name).read_bytes(), (step, name)


def test_several_processes_asked_for_and_one_started_are_told(models_dir, images_dir, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes=2", "--quiet"]
    arguments = [REPO / "train_hypernetwork.py", *command(models_dir, images_dir, tmp_path / "run")]
    done = subprocess.run([*launch, *map(str, arguments)], capture_output=True, text=True, cwd=REPO, timeout=100)
    assert (
        done.returncode != 0
        and "error: accelerate launch --cpu --num_processes: Accelerate has started one" in done.stderr
    )
    assert not (tmp_path / "run").exists()


def test_a_process_that_dies_ends_the_run_in_one_line(models_dir, images_dir, tmp_path):
    flags = ["--logging_steps=1", "--checkpointing_steps=5", "--max_train_steps=100000", "--checkpoints_total_limit=2"]
    launcher = start_training(models_dir, images_dir, tmp_path / "run", *flags, launch=LAUNCH_TWO)
    while len(list((tmp_path / "run" / "checkpoints").glob("step-*"))) < 2:
        time.sleep(0.05)
    workers = [
        child for child in psutil.Process(launcher.pid).children() if "train_hypernetwork" in " ".join(child.cmdline())
    ]
    rank = {child.environ()["RANK"]: child for child in workers}
    rank["0"].kill()  # the one that speaks for all, so another one has to
    assert launcher.wait(60) != 0
    said = open(f"{tmp_path / 'run'}.log").read()
    assert "error: another process of this run has died or hangs" in said, said[-3000:]
    said = train_here(models_dir, images_dir, tmp_path / "run", "--max_train_steps=1")
    assert "Going on from" in said and "is not used" not in said
