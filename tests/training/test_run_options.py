"""Compare a command with the run in its output folder, by options alone."""

import json
import shutil

import pytest

from hypernet.cli.training_options import parse_config
from hypernet.training.run_folder import RunFolder
from hypernet.training.run_options import changed_options, other_run, portable_options, read_orders, read_record


@pytest.fixture
def project(tmp_path):
    """A folder with images, a model and a template, all empty."""
    for name in ("images", "model"):
        (tmp_path / name).mkdir()
    (tmp_path / "lines.txt").write_text("a painting of [filewords]")
    return tmp_path


def configure(project, *flags):
    needed = [f"--pretrained_model_name_or_path={project / 'model'}", f"--train_data_dir={project / 'images'}"]
    return parse_config([*needed, f"--output_dir={project / 'run'}", *flags])


def begin(project, *flags):
    """Start training in the folder, as far as its record is concerned."""
    config = configure(project, *flags)
    orders = read_orders(config)
    config.mixed_precision = config.mixed_precision or "no"  # Accelerate's setting
    folder = RunFolder(config)
    folder.create(orders.overwrite, orders.begun_by)
    folder.record(orders.begun_by)
    return orders


def asked_for(project, *flags):
    orders = read_orders(configure(project, *flags))
    return "overwrite" if orders.overwrite else orders.checkpoint


def test_overwrite_counts_once_for_the_command_that_has_begun_the_run(project):
    begin(project)
    assert asked_for(project, "--overwrite") == "overwrite"
    begin(project, "--overwrite")
    assert asked_for(project, "--overwrite") == "latest"
    begin(project, "--learning_rate=1e-4")  # resumed without it
    assert asked_for(project, "--overwrite") == "latest"
    same = ["--max_train_steps=20000", "--checkpointing_steps=7", "--report_to=none", "--gradient_checkpointing"]
    same += ["--layer_structure=1, 2, 1", "--learning_rate=0.00001", f"--cache_dir={project}"]
    for flag in same:
        assert asked_for(project, "--overwrite", flag) == "latest", flag
    others = ["--learning_rate=1e-4", "--activation=relu", "--train_batch_size=2", "--no_guard", "--seed=1"]
    others += ["--mixed_precision=bf16", "--name=other", "--template=style", "--lr_scheduler=cosine"]
    for flag in others:
        assert asked_for(project, "--overwrite", flag) == "overwrite", flag
    assert asked_for(project, "--overwrite", "--mixed_precision=no") == "latest"


def test_overwrite_is_remembered_where_the_project_has_moved_to(project):
    begin(project, "--overwrite", f"--template={project / 'lines.txt'}")
    moved = project.rename(project.with_name("moved"))
    assert asked_for(moved, "--overwrite", f"--template={moved / 'lines.txt'}") == "latest"


def test_overwrite_is_remembered_in_a_copy_of_the_project(project, tmp_path_factory, monkeypatch):
    """Also with relative paths, whose targets in the original still exist."""
    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    flags = ["--pretrained_model_name_or_path=model", "--train_data_dir=./images", "--output_dir=run", "--overwrite"]
    monkeypatch.chdir(project)
    config = parse_config(flags)
    orders = read_orders(config)
    config.mixed_precision = "no"
    folder = RunFolder(config)
    folder.create(orders.overwrite, orders.begun_by)
    assert not read_orders(parse_config(flags)).overwrite
    shutil.copytree(project, copy)
    monkeypatch.chdir(copy)
    assert not read_orders(parse_config(flags)).overwrite
    assert read_orders(parse_config([*flags, "--train_data_dir=model"])).overwrite


def test_overwrite_with_another_folder_of_images_replaces(project):
    begin(project, "--overwrite")
    (project / "others").mkdir()
    assert asked_for(project, "--overwrite", f"--train_data_dir={project / 'others'}") == "overwrite"
    assert asked_for(project, "--overwrite", "--pretrained_model_name_or_path=somebody/model") == "overwrite"


def test_several_folders_are_remembered_with_their_repeats_and_order(project, tmp_path_factory):
    (project / "more").mkdir()

    def folders(root, *names):
        return ["--train_data_dir", *(str(root / name) for name in names)]

    begin(project, "--overwrite", *folders(project, "images", "more:2"))
    record = read_record(project / "run")
    assert record["train_data_dir"] == [str(project / "images"), f"{project / 'more'}:2"]
    assert asked_for(project, "--overwrite", *folders(project, "images", "more:2")) == "latest"
    for names in (["images", "more"], ["images", "more:3"], ["images"], ["more:2", "images"], ["images:2", "more:2"]):
        assert asked_for(project, "--overwrite", *folders(project, *names)) == "overwrite", names
    moved = project.rename(tmp_path_factory.mktemp("elsewhere") / "project")
    assert asked_for(moved, "--overwrite", *folders(moved, "images", "more:2")) == "latest"
    assert asked_for(moved, "--overwrite", "--repeats=3", *folders(moved, "images", "more:2")) == "latest"


def test_runs_begun_by_an_earlier_version_with_overwrite_resume(project):
    begin(project, "--overwrite", "--mixed_precision=no")
    path = project / "run" / "run.json"
    record = json.loads(path.read_text())
    del record["begun_by"]
    path.write_text(json.dumps(record))
    assert asked_for(project, "--overwrite") == "latest"
    assert asked_for(project, "--overwrite", "--learning_rate=1") == "overwrite"


@pytest.mark.parametrize("step", ["step-000010", "none"])
def test_a_run_goes_back_once(project, step):
    begin(project)
    back = f"--resume_from_checkpoint={step}"
    assert asked_for(project, back) == step
    begin(project, back)
    assert asked_for(project, back) == asked_for(project, back, "--max_train_steps=99999") == "latest"
    assert asked_for(project, back, "--learning_rate=1e-6") == step  # another attempt from there
    assert asked_for(project, "--resume_from_checkpoint=step-000020") == "step-000020"
    if step != "none":
        path = project / "run" / "checkpoints" / step
        assert asked_for(project, f"--resume_from_checkpoint={path}") == str(path)
    begin(project)
    assert asked_for(project, back) == step


def test_a_run_keeps_its_name_when_its_folder_is_renamed(project):
    begin(project)
    (project / "run").rename(project / "sunset")
    for _ in range(2):
        config = configure(project, f"--output_dir={project / 'sunset'}")
        assert config.name == "sunset" and read_orders(config).notes and config.name == "run"
        assert other_run(read_record(project / "sunset"), portable_options(config)) == []
        RunFolder(config).record(None)
    config = configure(project, f"--output_dir={project / 'sunset'}", "--name=other")
    assert not read_orders(config).notes
    (line,) = other_run(read_record(project / "sunset"), portable_options(config))
    assert line.startswith("name ")


def test_what_may_change_and_what_is_another_run(project):
    begin(project)
    record = read_record(project / "run")

    def differing(*flags):
        return [line.split()[0] for line in other_run(record, portable_options(configure(project, *flags)))]

    may_change = ["--gradient_checkpointing", "--enable_tiling", "--train_batch_size=4", "--mixed_precision=bf16"]
    may_change += ["--gradient_accumulation_steps=2", "--cache_dir=x", "--learning_rate=1", "--resolution=512x512"]
    assert differing(*may_change) == []
    assert differing("--activation=relu", "--seed=3") == ["activation", "seed"]
    assert differing("--optimizer=SGD") == ["optimizer"]


def test_init_from_is_the_same_file_wherever_it_lies(project, tmp_path_factory):
    start = project / "start.pt"
    start.write_bytes(b"1")
    before = portable_options(configure(project, f"--init_from={start}"))
    copy = tmp_path_factory.mktemp("copy") / "other.pt"
    copy.write_bytes(b"1")
    now = portable_options(configure(project, f"--init_from={copy}"))
    assert other_run(before, now) == []
    copy.write_bytes(b"2")
    assert len(other_run(before, now)) == 1
    start.rename(project / "moved.pt")
    assert len(other_run(before, now)) == 1
    assert other_run(before, {**now, "init_from": str(copy.with_name("start.pt"))}) == []


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"lora": 5, "learning_rate": [], "name": {}, "begun_by": 3}', '{"widths": 7}', "[" * 9000],
)
def test_a_damaged_record_is_another_run_not_a_traceback(project, content):
    begin(project, "--overwrite")
    (project / "run" / "run.json").write_text(content)
    for flags in ([], ["--overwrite"], ["--resume_from_checkpoint=none"], ["--lora=a/b"]):
        config = configure(project, *flags)
        read_orders(config)
        other_run(read_record(project / "run"), portable_options(config))


def test_spellings_of_the_same_numbers_are_equal():
    before = {"learning_rate": "5e-6:12000, 5e-7", "widths": "640,320", "resolution": "512", "dropout_structure": None}
    now = {**before, "learning_rate": "0.000005:12000,5e-7", "widths": "320, 640", "resolution": "512x512"}
    assert changed_options(before, now) == []
    assert changed_options(before, {**now, "learning_rate": "5e-6:12001, 5e-7"}) == ["learning_rate"]
