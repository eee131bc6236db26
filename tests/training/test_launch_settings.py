"""Settings of Accelerate: what its launcher makes of a configuration file, and whether training accepts it."""

import os
import re
import subprocess
import sys

import pytest
import yaml
from accelerate.commands import launch
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

from hypernet.cli.training_options import parse_config
from hypernet.training import launch_settings, setup
from hypernet.training.accelerator import choose_mixed_precision
from hypernet.training.launch_settings import check_launch_settings
from hypernet.utils.errors import UserError
from tests.helpers.scripts import REPO, command

PAGE = REPO / "examples" / "docs" / "distributed.md"
TWO = {"num_processes": 2, "num_machines": 1, "main_process_port": 0}
ONE = {"distributed_type": "NO", "num_processes": 1}


def apply_settings(monkeypatch, tmp_path, settings, flags=()):
    """Set the variables that `accelerate launch` sets for a configuration file with these settings."""
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump({"mixed_precision": "no", **settings}))
    arguments = launch.launch_command_parser().parse_args(["--config_file", str(path), *flags, "train.py"])
    arguments, defaults, _ = launch._validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.multi_gpu or arguments.use_fsdp or arguments.use_megatron_lm:
        environment = {**prepare_multi_gpu_env(arguments), "WORLD_SIZE": str(arguments.num_processes)}
    else:
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return arguments


def configure(tmp_path, *flags):
    """Return the options of a run on an empty model and an empty folder."""
    for name in ("epsilon", "images"):
        (tmp_path / name).mkdir()
    return parse_config(command(tmp_path, tmp_path / "images", tmp_path / "run", *flags))


REFUSED = {
    "distributed_type: FSDP": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 1}, **TWO},
    "distributed_type: FSDP, version 2": {"distributed_type": "FSDP", "fsdp_config": {"fsdp_version": 2}, **TWO},
    "distributed_type: MEGATRON_LM": {"distributed_type": "MEGATRON_LM", **TWO},
    "dynamo_backend: inductor": {"dynamo_config": {"dynamo_backend": "INDUCTOR"}, **ONE},
    "dynamo_backend: eager": {"dynamo_backend": "EAGER", **TWO, "distributed_type": "MULTI_GPU"},
    "num_processes": {"distributed_type": "MULTI_CPU", "use_cpu": True, **TWO},
    "num_processes, without use_cpu": {"distributed_type": "NO", **TWO},
} | {
    f"distributed_type: DEEPSPEED, ZeRO {stage}": {
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {"zero_stage": stage},
        **(TWO if stage > 1 else ONE | {"distributed_type": "DEEPSPEED", "main_process_port": 0}),
    }
    for stage in (1, 2, 3)
}


@pytest.mark.parametrize("setting", REFUSED)
def test_settings_that_would_change_the_training_are_refused(monkeypatch, tmp_path, setting):
    apply_settings(monkeypatch, tmp_path, REFUSED[setting])
    with pytest.raises(UserError, match=f"^{re.escape(setting.partition(',')[0])}"):
        check_launch_settings()


def test_an_address_that_the_user_has_set_means_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    apply_settings(monkeypatch, tmp_path, ONE)
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, env={"MASTER_ADDR": "10.0.0.1"}, stdin=subprocess.PIPE) as launcher:
        monkeypatch.setattr(os, "getppid", lambda: launcher.pid)
        check_launch_settings()
        launcher.communicate(b"\n")


def test_other_ways_of_splitting_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_PARALLELISM_CONFIG", "true")
    with pytest.raises(UserError, match="^parallelism_config"):
        check_launch_settings()


def test_fp8_is_refused_even_if_an_option_names_another_precision(monkeypatch, tmp_path):
    """Accelerate would convert the model, or fail where no library for fp8 is installed."""
    monkeypatch.setattr("accelerate.utils.launch.is_fp8_available", lambda: True)
    apply_settings(monkeypatch, tmp_path, {**ONE, "mixed_precision": "fp8"})
    with pytest.raises(UserError, match="^mixed_precision: fp8"):
        setup.start_run(configure(tmp_path, "--mixed_precision=bf16"))
    assert not (tmp_path / "run").exists()


def test_tpus_are_refused(monkeypatch):
    monkeypatch.setattr(launch_settings, "is_torch_xla_available", lambda: True)
    with pytest.raises(UserError, match="^distributed_type: XLA .*USE_TORCH_XLA"):
        check_launch_settings()


def test_fp16_is_refused_on_a_cpu_with_the_place_it_comes_from(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("accelerate.commands.launch.is_bf16_available", lambda _: False)
    apply_settings(monkeypatch, tmp_path, {**ONE, "use_cpu": True, "mixed_precision": "fp16"})
    check_launch_settings()
    config = configure(tmp_path)
    with pytest.raises(UserError, match="^mixed_precision: fp16"):
        choose_mixed_precision(config)
    config.mixed_precision = "fp16"
    with pytest.raises(UserError, match="^--mixed_precision fp16"):
        choose_mixed_precision(config)


def test_the_files_on_the_page_are_valid_and_accepted(monkeypatch, tmp_path):
    files = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    seen = set()
    for text in files:
        settings = {**yaml.safe_load(text), "main_process_port": 0}
        with monkeypatch.context() as patch:
            arguments = apply_settings(patch, tmp_path, settings, ["--machine_rank=1"])
            check_launch_settings()
        seen.add((arguments.num_machines, arguments.num_processes))
        assert arguments.machine_rank == 1 and arguments.mixed_precision in ("fp16", "bf16")
    assert {machines for machines, _ in seen} == {1, 2} and (1, 1) in seen
