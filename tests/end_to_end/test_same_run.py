"""When a run counts as the same: moved projects, changed contents, repeated commands, damaged best states."""

import json
import re
import shutil

import pytest
import torch
from PIL import Image

from hypernet.training import accelerator as accelerator_module
from hypernet.training import checkpoint, setup, updater
from hypernet.utils.errors import UserError
from hypernet.utils.hashing import write_manifest
from tests.helpers.scripts import read_csv, same_weights, step_of, train_here
from tests.helpers.tiny_models import tiny_pipeline

FLAGS = ["--learning_rate=1e-3", "--train_batch_size=3", "--checkpointing_steps=2", "--logging_steps=3"]
FLAGS += ["--validation_split=0.3", "--validation_loss_steps=2"]


def train_in(project, steps, *flags, model="model", images="images", out="out"):
    shared = f"--cache_dir={project.parent / 'cache'}"
    flags = [*FLAGS, f"--max_train_steps={steps}", f"--template={project / 'lines.txt'}", shared, *flags]
    return train_here(project, project / images, project / out, *flags, model=model)


@pytest.fixture(scope="module")
def finished(models_dir, images_dir, tmp_path_factory):
    """A folder with a model, images, a template, and a run of four steps with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("finished") / "project"
    shutil.copytree(models_dir / "epsilon", folder / "model")
    shutil.copytree(images_dir, folder / "images")
    (folder / "lines.txt").write_text("a painting of [filewords] by [name]\n")
    train_in(folder, 4)
    return folder


@pytest.fixture
def project(finished, tmp_path):
    """A copy of `finished` elsewhere."""
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def kill(monkeypatch):
    """A function that trains like `train_in`, and is killed when it calls an attribute of an object."""

    def train_until(place, name, *arguments):
        def killed(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(place, name, killed)
            train_in(*arguments)

    return train_until


def forget_step_4(project):
    """Leave the folder as if the run had been killed before its second checkpoint."""
    shutil.rmtree(project / "out" / "checkpoints" / "step-000004")


def resumed_at(printed):
    found = re.search(r"checkpoints/step-(\d+), step \d+\n", printed)
    return found and int(found[1])


def notes(printed):
    lines = [line for line in printed.splitlines() if line.strip().startswith("note: ")]
    return [line for line in lines if "standard deviation" not in line]  # of the tiny VAE


def files_below(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit_progress(folder, change):
    """Change the progress in a checkpoint, and its manifest accordingly."""
    path = folder / "progress.json"
    progress = json.loads(path.read_text())
    change(progress)
    path.write_text(json.dumps(progress))
    (folder / "manifest.json").unlink()
    write_manifest(folder)


def as_by_an_earlier_version(out):
    """Remove from a run's folder what earlier versions did not save."""
    for folder in (out / "checkpoints").iterdir():
        edit_progress(folder, lambda progress: [progress.pop(key) for key in ("trained_with", "grad_norms")])
    record = json.loads((out / "run.json").read_text())
    record.pop("begun_by")
    (out / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_moved_and_renamed_project_resumes_exactly(finished, project, earlier_version):
    forget_step_4(project)
    template = project / "moved.txt"
    if earlier_version:
        as_by_an_earlier_version(project / "out")
        template = finished / "lines.txt"  # the lines were not saved, so the option must be the same
    for name, renamed in [("model", "sd15"), ("images", "pictures"), ("lines.txt", "moved.txt"), ("out", "sunset")]:
        (project / name).rename(project / renamed)
    memory = ["--gradient_checkpointing", "--enable_tiling", f"--template={template}"]
    printed = train_in(project, 4, *memory, model="sd15", images="pictures", out="sunset")
    assert resumed_at(printed) == 2 and "epoch begins" not in printed and "bit for bit" not in printed
    assert len(notes(printed)) == 1 and not re.search("  --", printed)  # the note says that it keeps its name
    ours, theirs = project / "sunset", finished / "out"
    assert same_weights(ours / "out.pt", theirs / "out.pt") and same_weights(ours / "best", theirs / "best")
    for name in ("hypernetwork_loss.csv", "validation_loss.csv"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    # the first mean is of steps before and after the resume
    norms = [read_csv(run / "metrics.csv", "grad_norm") for run in (ours, theirs)]
    assert len(norms[1]) == 2 and (norms[0] == norms[1] or earlier_version)


def test_other_images_in_another_place_are_another_run(project):
    (project / "images").rename(project / "others")
    (project / "others" / "0.png").unlink()
    before = files_below(project / "out")
    with pytest.raises(UserError, match=r"--output_dir .*train_data_dir .*--init_from \S+step-000004.*--overwrite"):
        train_in(project, 6, images="others")
    assert files_below(project / "out") == before


def test_another_base_model_is_refused(finished, project):
    before, model = files_below(project / "out"), project / "model"
    other, named = tiny_pipeline("v_prediction", seed=7), "pretrained_model_name_or_path"
    for part in ("unet", "vae", "text_encoder", "scheduler"):
        getattr(other, part).save_pretrained(model / part)
        with pytest.raises(UserError, match=rf"--output_dir .*{named} .*--init_from \S+step-000004"):
            train_in(project, 6)
        shutil.rmtree(model / part)
        shutil.copytree(finished / "model" / part, model / part)
    for changed in ("unet/config.json", "tokenizer/tokenizer.json"):
        content = json.loads((model / changed).read_text(encoding="utf-8"))
        if changed.startswith("unet"):
            content["norm_num_groups"] //= 2
        else:  # two words trade places
            words = content["model"]["vocab"]
            (one, i), (two, j) = list(words.items())[300:302]
            words.update({one: j, two: i})
        (model / changed).write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(UserError, match=rf"--output_dir .*{named} .*--init_from \S+step-000004"):
            train_in(project, 6)
        shutil.copy(finished / "model" / changed, model / changed)
    assert files_below(project / "out") == before
    as_by_an_earlier_version(project / "out")
    other.unet.save_pretrained(model / "unet")
    with pytest.raises(UserError, match=named):
        train_in(project, 6, f"--template={finished / 'lines.txt'}")


def test_other_images_captions_or_templates_in_the_same_place_are_noted(project):
    for step, word, change in [
        (5, "captions", lambda: (project / "images" / "0.txt").write_text("a blue moon")),
        (6, "templates", lambda: (project / "lines.txt").write_text("[filewords]\nart of [filewords]\n")),
        (7, "images", lambda: Image.new("RGB", (64, 64), "red").save(project / "images" / "a red square.png")),
    ]:
        change()
        (project / "out" / "held_out.json").write_text("{")  # the checkpoint knows the validation images, too
        printed = train_in(project, step)
        (note,) = (line for line in notes(printed) if "changed since" in line)
        assert word in note and resumed_at(printed) == step - 1
        assert ("a new epoch begins" in printed) == (word == "images")
        assert "validation images, never trained on: 2 " in printed  # of nine images, it would be three


def test_batch_size_accumulation_and_precision_may_change_with_a_message(project):
    shutil.copytree(project / "out", project / "copy")
    # Accelerate's count of batches, which would shift the updates, is among these
    (project / "copy" / "checkpoints" / "step-000004" / "random_states_0.pkl").unlink()
    flags = ["--gradient_accumulation_steps=3"]
    for out in ("out", "copy"):
        printed = train_in(project, 6, *flags, "--name=out", out=out)
        assert resumed_at(printed) == 4 and len(re.findall("--gradient_accumulation_steps .*bit for bit", printed)) == 1
    assert same_weights(project / "out", project / "copy")
    printed = train_in(project, 7, *flags, "--mixed_precision=bf16", "--train_batch_size=2")
    (line,) = (line for line in printed.splitlines() if "bit for bit" in line)
    assert "--mixed_precision" in line and "--train_batch_size" in line and "--gradient_acc" not in line
    assert step_of(project / "out") == 7


def test_a_loss_scaler_may_come_and_go_with_the_precision(project, monkeypatch):
    """On a GPU, fp16 has one."""

    def build_with_scaler(*arguments):
        accelerator = accelerator_module.build_accelerator(*arguments)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        return accelerator

    with monkeypatch.context() as patch:
        patch.setattr(setup, "build_accelerator", build_with_scaler)
        assert resumed_at(train_in(project, 6)) == 4
    assert (project / "out" / "checkpoints" / "step-000006" / "scaler.pt").is_file()
    assert resumed_at(train_in(project, 7)) == 6


def test_the_same_command_resumes_although_it_overwrites_or_goes_back(project):
    assert resumed_at(train_in(project, 2, "--overwrite", "--seed=1")) is None
    assert resumed_at(train_in(project, 4, "--overwrite", "--seed=1")) == 2
    back = "--resume_from_checkpoint=step-000002"
    assert resumed_at(train_in(project, 4, "--overwrite", "--seed=1", back)) == 2
    assert resumed_at(train_in(project, 5, "--overwrite", "--seed=1", back)) == 4


def test_a_run_killed_before_it_has_gone_back_goes_back_next_time(project, kill):
    back = "--resume_from_checkpoint=step-000002"
    kill(checkpoint.Checkpointer, "load", project, 4, back)
    assert resumed_at(train_in(project, 4, back)) == 2


def test_a_changed_learning_rate_counts_until_a_checkpoint_is_trained_with_it(project, kill):
    last = project / "out" / "checkpoints" / "step-000004"
    edit_progress(last, lambda progress: progress["guard"].update(rate_factor=0.001))
    kill(updater, "training_loss", project, 5, "--learning_rate=0.01")
    shutil.copytree(project / "out", project / "copy")
    printed = train_in(project, 5, "--learning_rate=0.01")
    assert re.search("--learning_rate .*1e-3.*0.01", printed)
    assert read_csv(project / "out" / "hypernetwork_loss.csv", "learn_rate")[-1] == 0.01
    train_in(project, 5, "--name=out", out="copy")
    assert read_csv(project / "copy" / "hypernetwork_loss.csv", "learn_rate")[-1] == pytest.approx(1e-6)


@pytest.mark.parametrize("file", ["out.pt", "optimizer.bin", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_best_state_is_recovered(finished, project, file):
    best, step = project / "out" / "best", step_of(finished / "out" / "best")
    assert step > 0  # so that there is a checkpoint of that step
    content = bytearray((best / file).read_bytes())
    content[200] ^= 1
    for damaged in (project / "out").glob(f"**/best/{file}"):  # links to one file
        damaged.write_bytes(content)
    printed = train_in(project, 4)
    (note,) = notes(printed)
    assert resumed_at(printed) == 4 and "step-000004/best" in note and file in note
    assert same_weights(best, finished / "out" / "best") and same_weights(best, best / "out.pt")
    assert step_of(best) == step


def test_the_search_for_a_lost_best_state_starts_over(project):
    def have_best_at_3(progress):
        progress["guard"].update(best_step=3, best_loss=0.0)

    last = project / "out" / "checkpoints" / "step-000004"
    shutil.rmtree(last / "best")
    edit_progress(last, have_best_at_3)
    printed = train_in(project, 5)
    assert resumed_at(printed) == 4 and len(notes(printed)) == 1
    assert read_csv(project / "out" / "validation_loss.csv", "step") == [0, 2, 4, 5]
    assert step_of(project / "out" / "best") in (4, 5)


def test_step_0_is_measured_once(finished, project, kill):
    shutil.rmtree(project / "out")
    kill(updater, "training_loss", project, 4)
    assert read_csv(project / "out" / "validation_loss.csv", "step") == [0]
    for flags in ([], ["--resume_from_checkpoint=none"]):
        train_in(project, 4, *flags)
        tables = [folder / "out" / "validation_loss.csv" for folder in (project, finished)]
        assert tables[0].read_bytes() == tables[1].read_bytes()


def test_a_full_disk_ends_with_what_is_saved(project, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(checkpoint.Checkpointer, "export", full_disk)
        train_in(project, 2, "--resume_from_checkpoint=none")
    assert re.search(r"checkpoint of step 2 is saved.*out\.pt", str(error.value))
    with monkeypatch.context() as patch, pytest.raises(UserError) as error:
        patch.setattr(checkpoint, "write_manifest", full_disk)
        train_in(project, 4)
    assert re.search("step 4 is not saved.*step-000002", str(error.value))
    assert resumed_at(train_in(project, 2)) == 2 and step_of(project / "out" / "out.pt") == 2


def test_several_folders_with_repeats_resume_exactly_where_they_have_moved_to(finished, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(finished / "model", project / "model")
    for folder, left_out in (("cats/3_calm", range(4)), ("others", range(4, 8))):
        ignore = shutil.ignore_patterns(*(f"{i}.png" for i in left_out))
        shutil.copytree(finished / "images", project / folder, ignore=ignore)
    (project / "others" / "template.txt").write_text("[folder], [filewords]\n")
    options = ["--learning_rate=1e-3", "--train_batch_size=3", "--checkpointing_steps=5", "--logging_steps=1"]
    options += ["--flip_p=0.3", "--latent_sampling=random", "--dropout_structure=0,0.3,0", "--activation=relu"]
    options += [f"--cache_dir={tmp_path / 'cache'}", "--name=x"]

    def train(out, folders, *flags):
        paths = ["--train_data_dir", *(project / folder for folder in folders)]
        printed = train_here(project, "", project / out, *options, *paths, *flags, model="model")
        rows = read_csv(project / out / "hypernetwork_loss.csv")
        return printed, [(int(row["epoch"]), int(row["epoch_step"])) for row in rows], [row["loss"] for row in rows]

    # an epoch has 4 images three times and 4 images twice, so 7 batches
    folders = ["cats", "others:2"]
    _, places, losses = train("whole", folders, "--num_train_epochs=2")
    assert places == [(epoch, step) for epoch in range(2) for step in range(7)]
    _, places, counted = train("counted", folders, "--num_train_epochs=1", "--repeats=2")
    assert places == [(0, step) for step in range(14)]
    assert counted == losses and same_weights(project / "counted", project / "whole")

    shutil.copytree(project / "whole", project / "killed")
    for step in (10, 14):
        shutil.rmtree(project / "killed" / "checkpoints" / f"step-{step:06d}")
    (project / "cats").rename(project / "dogs")
    (project / "moved").mkdir()
    (project / "others").rename(project / "moved" / "others")
    with pytest.raises(UserError, match="differing: train_data_dir "):
        train("killed", ["dogs", "moved/others:3"], "--num_train_epochs=2")
    printed, _, resumed = train("killed", ["dogs", "moved/others:2"], "--num_train_epochs=2")
    assert resumed_at(printed) == 5 and "epoch begins" not in printed and "changed since" not in printed
    assert resumed == losses and same_weights(project / "killed", project / "whole")
