"""Values that W&B refuses are reported before a run starts."""

import pytest

from hypernet.cli.training_options import parse_config
from hypernet.training.wandb_rules import artifact_name, check_wandb_settings, is_run_id
from hypernet.utils.errors import UserError
from tests.helpers.scripts import one_line_error

FLAGS = ["--pretrained_model_name_or_path=m", "--train_data_dir=d"]


@pytest.mark.parametrize("project", [*(f"my{sign}styles" for sign in "/\\#?%:"), "x" * 129, "", " "])
def test_project_names(project):
    assert "--tracker_project_name" in one_line_error(parse_config, *FLAGS, "--tracker_project_name", project)
    assert parse_config([*FLAGS, f"--tracker_project_name={project}", "--report_to=none"])  # unused there
    from examples import xy_plot

    axis = ["--x", "seed", "1", "2", "--prompt=a cat", "--wandb"]
    assert "--tracker_project_name" in one_line_error(xy_plot.main, *axis, "--tracker_project_name", project)


def test_other_names():
    assert "--run_name" in one_line_error(parse_config, *FLAGS, "--run_name", "x" * 129)
    name = ["--name", "x" * 129]
    assert "--log_artifact" in one_line_error(parse_config, *FLAGS, *name, "--log_artifact")
    assert parse_config([*FLAGS, *name]) and parse_config([*FLAGS, "--name=水墨 (2)", "--log_artifact"])
    assert artifact_name("水墨 a-b.c") == "___a-b.c"
    for project in ("hypernetworks", "my styles", "水墨", "x" * 128):
        check_wandb_settings(project)


@pytest.mark.parametrize(
    "name, value",
    [
        ("WANDB_MODE", "bogus"),
        ("WANDB_RUN_ID", "a/b"),
        ("WANDB_RUN_ID", "a%b"),
        ("WANDB_RUN_ID", "x" * 129),
        ("WANDB_RUN_ID", ""),
        ("WANDB_PROJECT", "a:b"),
        ("WANDB_BASE_URL", "no address"),
        ("WANDB_RUN_GROUP", "x" * 129),
    ],
)
def test_environment_variables(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert name in one_line_error(parse_config, *FLAGS)
    assert parse_config([*FLAGS, "--report_to=none"])


def test_secrets_are_not_shown(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", " secret ")
    with pytest.raises(UserError, match="WANDB_API_KEY") as error:
        check_wandb_settings("x")
    assert "secret" not in str(error.value)


def test_run_ids():
    assert is_run_id("a1b2c3d4") and is_run_id("x" * 128)
    assert not any(map(is_run_id, ["", " ", "a/b", "a\n", "\0", "a?b", "x" * 129]))
