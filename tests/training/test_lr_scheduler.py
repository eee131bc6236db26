"""The rate of every step against diffusers' own schedulers, stepped as its training scripts do."""

import pytest
import torch
from diffusers.optimization import get_scheduler

from hypernet.cli.training_options import parse_config
from hypernet.training.lr_schedule import learning_rate_function
from hypernet.utils.errors import UserError

NEEDED = ["--pretrained_model_name_or_path=m", "--train_data_dir=d", "--max_train_steps=50"]


@pytest.mark.parametrize(
    "name, flags, options",
    [
        ("constant_with_warmup", ["--lr_warmup_steps=7"], {"num_warmup_steps": 7}),
        ("linear", ["--lr_warmup_steps=5"], {"num_warmup_steps": 5}),
        ("cosine", [], {"num_warmup_steps": 0}),
        (
            "cosine_with_restarts",
            ["--lr_warmup_steps=4", "--lr_num_cycles=3"],
            {"num_warmup_steps": 4, "num_cycles": 3},
        ),
        ("polynomial", ["--lr_power=2"], {"num_warmup_steps": 0, "power": 2.0}),
    ],
)
def test_rates_equal_diffusers(name, flags, options):
    config = parse_config([*NEEDED, "--learning_rate=2e-4", f"--lr_scheduler={name}", *flags])
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler = get_scheduler(name, optimizer, num_training_steps=50, **options)
    rate_at = learning_rate_function(config)
    for step in range(50):
        assert rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=0), step
        optimizer.step()
        scheduler.step()


def test_without_a_scheduler_the_schedule_holds():
    rate_at = learning_rate_function(parse_config([*NEEDED, "--learning_rate=1e-3:20, 1e-4"]))
    assert [rate_at(step) for step in (0, 19, 20, 49)] == [1e-3, 1e-3, 1e-4, 1e-4]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--lr_scheduler=cosin"], "--lr_scheduler cosin: choose one of linear, cosine, .*constant"),
        (["--lr_scheduler=piecewise_constant"], "--lr_scheduler piecewise_constant: choose one of"),
        (
            ["--lr_scheduler=cosine", "--learning_rate=1e-3:20, 1e-4"],
            "--lr_scheduler cosine: it starts from one rate, and --learning_rate is 1e-3:20, 1e-4; write a single",
        ),
        (["--lr_warmup_steps=5"], "--lr_warmup_steps 5: it belongs to --lr_scheduler "),
        (
            ["--lr_num_cycles=2", "--lr_scheduler=cosine"],
            "--lr_num_cycles 2: it belongs to --lr_scheduler cosine_with_res",
        ),
        (["--lr_power=2"], "--lr_power 2.0: it belongs to --lr_scheduler polynomial"),
        (["--lr_scheduler=polynomial", "--learning_rate=1e-9"], "--lr_scheduler polynomial: lr_end"),
        (["--learning_rate=0"], "--learning_rate 0: with a rate of 0 nothing is learnt"),
        (["--lr_scheduler=linear", "--lr_warmup_steps=50"], "--lr_warmup_steps 50: the rate would grow beyond"),
    ],
)
def test_mistakes_get_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        parse_config([*NEEDED, *flags])
    assert "\n" not in str(error.value)


def test_epochs_become_steps():
    config = parse_config([*NEEDED[:2], "--num_train_epochs=3", "--gradient_accumulation_steps=4"])
    config.count_steps(10)
    assert config.max_train_steps == 8 and config.schedule.last_step == 8  # 30 batches, four a step
