"""Whole runs at learning rates that are far too high, with and without the divergence guard."""

import json
import math
import shutil

import pytest

from hypernet.training import divergence_guard
from hypernet.training.preview_scores import PreviewScores
from tests.helpers.scripts import read_csv, same_weights, step_of, train_here
from tests.helpers.tiny_models import tiny_unet


@pytest.fixture
def judged_by_loss(monkeypatch):
    """Let the divergence guard watch the loss alone."""
    monkeypatch.setattr(divergence_guard, "MAX_PERTURBATION", math.inf)


@pytest.fixture
def give_fidelities(monkeypatch):
    """A function that determines the prompt fidelity after each step; of the exported hypernetwork it is 0.9."""

    def measure(fidelities, scores, state, check):
        if scores.previewer.base_previews is not None:  # with --validation_prompt
            scores.previewer.sample(check, state)
        fidelity = 0.9 if state[0] == "with" else fidelities[state[0]]
        scores.values = {"prompt_fidelity": fidelity, "style_distance": 0.5, "score": fidelity / 2}
        return scores.values

    def give(fidelities):
        monkeypatch.setattr(
            PreviewScores, "measure", lambda scores, state, check: measure(fidelities, scores, state, check)
        )

    return give


@pytest.fixture(scope="module")
def sensitive(models_dir, tmp_path_factory):
    """Folder with a tiny model whose loss rises with the contexts without limit, as its layers normalize nothing.

    A UNet with random weights does as badly as it can; normalized, it could not do worse.
    """
    folder = tmp_path_factory.mktemp("sensitive")
    shutil.copytree(models_dir / "epsilon", folder / "epsilon")
    unet = tiny_unet(norm_eps=1e6)
    for layer in unet.modules():
        if getattr(layer, "eps", None) == 1e6:
            layer.weight.data.fill_(1e3)
    unet.save_pretrained(folder / "epsilon" / "unet")
    return folder


def test_a_run_that_cannot_learn_ends_with_its_best_state(models_dir, images_dir, tmp_path):
    """Even a thousandth of this learning rate is too high: three rollbacks, then the run gives up."""
    flags = ["--learning_rate=1e4", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=1"]
    flags += ["--max_train_steps=8", "--checkpointing_steps=1000", "--name=x"]
    train_here(models_dir, images_dir, tmp_path / "run", *flags)
    events = read_csv(tmp_path / "run" / "guard.csv")
    assert [event["learning_rate_factor"] for event in events] == ["0.1", "0.01", "0.001", "0.001"]
    assert all(event["event"].startswith("effect/") for event in events)  # the perturbation gave it away
    assert step_of(tmp_path / "run" / "best") == 0
    assert same_weights(tmp_path / "run", tmp_path / "run" / "best")
    result = read_result(tmp_path / "run")
    train_here(models_dir, images_dir, tmp_path / "run", *flags)  # it stays ended
    assert read_csv(tmp_path / "run" / "guard.csv") == events and read_result(tmp_path / "run") == result
    train_here(models_dir, images_dir, tmp_path / "run", *flags, "--learning_rate=1e-4")
    assert read_result(tmp_path / "run")["step"] == 8


@pytest.mark.usefixtures("judged_by_loss")
def test_rolls_back_when_the_validation_loss_rises(sensitive, images_dir, tmp_path):
    flags = ["--learning_rate=1", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=2"]
    flags += ["--max_train_steps=20", "--checkpointing_steps=7", "--logging_steps=5", "--name=x", "--weight_init=zero"]
    guarded, free = tmp_path / "guarded", tmp_path / "free"
    train_here(sensitive, images_dir, guarded, *flags)
    train_here(sensitive, images_dir, free, *flags, "--no_guard")
    for run in (guarded, free):  # `best` is the best of what was measured, whatever that was on this processor
        losses, steps = (read_csv(run / "validation_loss.csv", column) for column in ("val_loss", "step"))
        assert step_of(run / "best" / "x.pt") == steps[losses.index(min(losses))]
        assert same_weights(run / "best", run / "best" / "x.pt")
    events = read_csv(guarded / "guard.csv")
    assert float(events[0]["learning_rate_factor"]) == 0.1 and not (free / "guard.csv").exists()
    learning_rates = {round(rate, 9) for rate in read_csv(guarded / "hypernetwork_loss.csv", "learn_rate")}
    assert {1.0, 0.1} <= learning_rates
    assert {round(rate, 9) for rate in read_csv(free / "hypernetwork_loss.csv", "learn_rate")} == {1.0}
    # the exported state is no worse than the base model, and the best one if the last was worse
    losses, base = (read_csv(guarded / "validation_loss.csv", column) for column in ("val_loss", "val_loss_base"))
    exported = min(losses) if same_weights(guarded, guarded / "best") else losses[-1]
    assert exported <= base[0]
    assert json.loads((guarded / "result.json").read_text())["val_loss"] == pytest.approx(exported, abs=1e-6)
    assert max(read_csv(free / "validation_loss.csv", "val_loss")) > 1.3 * base[0]  # what it would have come to


@pytest.mark.usefixtures("judged_by_loss")
def test_rollbacks_are_exact_over_a_resume(sensitive, images_dir, tmp_path):
    flags = ["--learning_rate=1e-5:9, 1", "--max_grad_norm=0", "--validation_split=0.3", "--validation_loss_steps=2"]
    flags += ["--checkpointing_steps=7", "--logging_steps=5", "--name=x", "--ema_decay=0.5", "--max_train_steps=42"]
    whole = tmp_path / "whole"
    train_here(sensitive, images_dir, whole, *flags)
    first_rollback = int(read_csv(whole / "guard.csv")[0]["step"])
    after = first_rollback // 7 * 7 + 7  # the first checkpoint after the rollback
    assert 7 < first_rollback and after < 42  # so one resume starts before the rollback, the other after it
    for step in (7, after):  # whose best states differ from the final one
        parts = tmp_path / f"from {step}"
        shutil.copytree(whole, parts)
        resume = f"--resume_from_checkpoint=step-{step:06d}"
        train_here(sensitive, images_dir, parts, *flags, resume)
        assert same_weights(whole, parts) and same_weights(whole / "best", parts / "best"), step
        tables = ["hypernetwork_loss.csv", "validation_loss.csv", "guard.csv"]
        for name in [*tables, "checkpoints/step-000042/optimizer.bin"]:
            assert (whole / name).read_bytes() == (parts / name).read_bytes(), (step, name)


SCORED = ["--validation_split=0.3", "--validation_loss_steps=2", "--checkpointing_steps=3", "--name=x"]
SCORED += ["--learning_rate=1e-3", "--logging_steps=1", "--train_batch_size=3", "--weight_init=xavier_normal"]
TABLES = ("hypernetwork_loss.csv", "validation_loss.csv", "scores.csv", "guard.csv")


def read_result(run):
    """Return result.json, which must be valid JSON: without NaN and infinity."""
    return json.loads((run / "result.json").read_text(), parse_constant=pytest.fail)


def test_rolls_back_when_images_no_longer_show_their_prompts(models_dir, images_dir, tmp_path, give_fidelities):
    fidelities = {0: 1.0, 2: 0.9, 4: 0.45, 6: 0.4, 8: 0.8, 10: 0.7, 12: 0.3}
    give_fidelities(fidelities)
    whole, flags = tmp_path / "whole", [*SCORED, "--max_train_steps=12"]
    train_here(models_dir, images_dir, whole, *flags)
    events = [(event["step"], event["learning_rate_factor"]) for event in read_csv(whole / "guard.csv")]
    # the second in a row; then the last, which is not exported
    assert events == [("6", "0.333333"), ("12", "0.333333")]
    losses = dict(zip(*(read_csv(whole / "validation_loss.csv", column) for column in ("step", "val_loss"))))
    assert dict(zip(*(read_csv(whole / "scores.csv", column) for column in ("step", "prompt_fidelity")))) == fidelities
    best = min((step for step, fidelity in fidelities.items() if fidelity >= 0.5), key=losses.__getitem__)
    assert step_of(whole / "best") == best and same_weights(whole, whole / "best")
    result = read_result(whole)
    assert (result["best_step"], result["guard_returns"], result["prompt_fidelity"]) == (best, 1, 0.9)
    assert result["val_loss"] == result["best_val_loss"] == pytest.approx(losses[best], abs=1e-6)
    for step in (3, 9):  # before the rollback, and after it
        parts = tmp_path / f"from {step}"
        shutil.copytree(whole, parts)
        train_here(models_dir, images_dir, parts, *flags, f"--resume_from_checkpoint=step-{step:06d}")
        assert same_weights(whole, parts) and same_weights(whole / "best", parts / "best")
        for name in (*TABLES, "result.json"):
            assert (whole / name).read_bytes() == (parts / name).read_bytes(), (step, name)

    give_fidelities(dict.fromkeys(range(13), 0.45))  # as if measured so; now it is enough
    train_here(models_dir, images_dir, tmp_path / "lower", *flags, "--min_prompt_fidelity=0.45")
    assert not (tmp_path / "lower" / "guard.csv").exists()


@pytest.mark.parametrize("fidelity, is_said", [(0.05, True), (-0.3, True), (0.15, False), (None, False)])
def test_says_if_the_base_model_does_not_recognize_the_images(
    models_dir, images_dir, tmp_path, give_fidelities, monkeypatch, fidelity, is_said
):
    monkeypatch.setattr(PreviewScores, "measure_base", lambda scores: setattr(scores, "own_fidelity", fidelity))
    give_fidelities(dict.fromkeys(range(3), 1.0))
    said = train_here(models_dir, images_dir, tmp_path, *SCORED, "--max_train_steps=2")
    notes = [line for line in said.splitlines() if "--min_prompt_fidelity" in line]
    assert len(notes) == is_said
    if is_said:
        assert f"{fidelity:.2f}" in notes[0] and notes[0].removeprefix("note: ") in (tmp_path / "run.html").read_text()


def test_what_the_guard_discards_can_be_seen(models_dir, images_dir, tmp_path, give_fidelities):
    give_fidelities({0: 1.0, 2: 0.9, 4: 0.2, 6: 0.9, 8: 0.2})
    flags = [*SCORED, "--max_train_steps=8", "--validation_prompt=a cat", "--validation_inference_steps=2"]
    said = train_here(models_dir, images_dir, tmp_path, *flags, "--validation_steps=4", "--learning_rate=0.1")
    names = {path.name for path in (tmp_path / "previews").iterdir()}
    assert {"step-000004-discarded.png", "step-000004.png", "step-000008-discarded.png"} <= names
    discarded, restored = (tmp_path / "previews" / f"step-000004{end}.png" for end in ("-discarded", ""))
    assert discarded.read_bytes() != restored.read_bytes()  # the latter shows the state of step 2
    assert "step 4, discarded" in (tmp_path / "run.html").read_text()
    best = read_result(tmp_path)["best_step"]
    assert best in (2, 6) and f"step {best}" in (tmp_path / "README.md").read_text()
    (line,) = [line for line in said.splitlines() if str(tmp_path / "guard.csv") in line]
    assert "2 rollbacks" in line and f"step {best}" in line
    give_fidelities(dict.fromkeys(range(9), 0.9))
    train_here(models_dir, images_dir, tmp_path, *flags, "--resume_from_checkpoint=step-000003")
    assert not list((tmp_path / "previews").glob("*-discarded.png"))  # nothing of what the run has taken back


def test_without_a_state_that_shows_the_prompts_there_is_no_best(models_dir, images_dir, tmp_path, give_fidelities):
    give_fidelities(dict.fromkeys(range(9), 0.1))
    whole, parts, flags = tmp_path / "whole", tmp_path / "parts", [*SCORED, "--max_train_steps=8"]
    said = train_here(models_dir, images_dir, whole, *flags)
    assert "--min_prompt_fidelity 0.5" in said and not (whole / "best").exists() and not (whole / "guard.csv").exists()
    result = read_result(whole)
    assert result["best_step"] is None and result["best_val_loss"] is None and result["val_loss"] > 0
    shutil.copytree(whole, parts)
    train_here(models_dir, images_dir, parts, *flags, "--resume_from_checkpoint=step-000003")
    assert same_weights(whole, parts) and not (parts / "best").exists()
    for name in (*TABLES[:3], "result.json", "checkpoints/step-000008/progress.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name
