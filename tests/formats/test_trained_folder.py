"""What a run's folder says of itself."""

import dataclasses
import json

import pytest

import hypernet
from hypernet import Hypernetwork
from hypernet.config import TrainingConfig
from hypernet.formats.trained_folder import (
    find_run_options,
    is_best_state,
    is_run_folder,
    previewed_prompts,
    read_trained_config,
)
from hypernet.utils.errors import UserError


def test_finds_a_runs_options_from_its_folder_checkpoints_and_files(tmp_path):
    run = tmp_path / "run"
    hypernet.save(Hypernetwork((12,), name="style"), run)
    hypernet.save(Hypernetwork((12,), name="style"), run / "checkpoints" / "step-000001")
    hypernet.save(Hypernetwork((12,), name="style"), run / "best")
    hypernet.save(Hypernetwork((12,)), run / "style.pt")
    assert not is_run_folder(run) and not is_best_state(run / "best") and find_run_options(run) == {}
    (run / "run.json").write_text(json.dumps({"seed": 7}))
    for path in (run, run / "checkpoints" / "step-000001", run / "best", run / "style.pt"):
        assert find_run_options(path) == {"seed": 7}
        assert find_run_options(str(path)) == {"seed": 7}
    assert find_run_options(run / "none.pt") == {} and find_run_options(tmp_path) == {}
    assert is_run_folder(run) and is_best_state(run / "best") and not is_best_state(run)


def test_reads_the_config_of_a_hypernetwork_only(tmp_path):
    folder = tmp_path / "style"
    assert read_trained_config(folder) is None
    hypernet.save(Hypernetwork((12,), name="style", step=3), folder)
    config = read_trained_config(folder)
    assert (config["name"], config["step"]) == ("style", 3)
    for content in ('{"_class_name": "UNet2DConditionModel"}', "5", "{", "[" * 100_000):
        (folder / "config.json").write_text(content)
        assert read_trained_config(folder) is None


@pytest.mark.parametrize(
    "options",
    [
        {"lora": "ink.safetensors"},
        {"lora": [1]},
        {"seed": "7"},
        {"seed": True},
        {"learning_rate": {}},
        {"pretrained_model_name_or_path": ["a"]},
        {"prompt_emphasis": 1},
        {"validation_guidance_scale": float("nan")},
        {"train_batch_size": 10**400},
    ],
)
def test_an_impossible_option_is_one_error(tmp_path, options):
    (tmp_path / "run.json").write_text(json.dumps({"name": "style", **options}))
    with pytest.raises(UserError, match=f"^{tmp_path / 'run.json'}: {next(iter(options))}"):
        find_run_options(tmp_path)


def test_options_of_every_run_are_read(tmp_path):
    written = dataclasses.asdict(TrainingConfig()) | {"lora": ["a:1"], "validation_guidance_scale": 7, "future": [{}]}
    (tmp_path / "run.json").write_text(json.dumps(written))
    assert find_run_options(tmp_path) == written


@pytest.mark.parametrize("content", ["[]", "7", "{", "", "[" * 100_000])
def test_other_files_called_run_json_are_not_runs(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    assert find_run_options(tmp_path) == {}


def test_knows_what_a_run_previewed():
    assert previewed_prompts({"validation_prompt": ["a"], "previews": [{"prompt": "a"}, {"prompt": "b"}]}) == ["a", "b"]
    assert previewed_prompts({"previews": [{"prompt": "a", "seed": 1}, {"prompt": "a", "seed": 2}]}) == ["a"]
    for damaged in (None, "x", [1, {"prompt": 2}]):
        assert previewed_prompts({"validation_prompt": ["a"], "previews": damaged}) == ["a"]
    assert previewed_prompts({}) == []
