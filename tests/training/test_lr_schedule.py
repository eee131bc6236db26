"""Schedules against the documented rules of the WebUI, and learning rates against diffusers' schedulers."""

import random
import re

import pytest
import torch
from diffusers.optimization import get_scheduler

from hypernet.cli.training_options import parse_config
from hypernet.config import TrainingConfig
from hypernet.training.lr_schedule import (
    ScheduleError,
    clipping_schedule,
    learning_rate_function,
    parse_schedule,
    schedule_end,
    unreached_values,
)
from hypernet.utils.errors import UserError

REQUIRED = ["--pretrained_model_name_or_path=m", "--train_data_dir=d"]


@pytest.mark.parametrize(
    "text, pieces",
    [
        ("1e-5", ((1e-5, 100),)),
        ("5e-6:60, 5e-7:90", ((5e-6, 60), (5e-7, 90))),
        ("5e-6:60, 5e-7:90,", ((5e-6, 60), (5e-7, 90))),
        ("5e-6:60, 5e-7", ((5e-6, 60), (5e-7, 100))),
        ("5e-6:60, 5e-7:-1", ((5e-6, 60), (5e-7, 100))),
        ("1e-4:150, 5e-7", ((1e-4, 100),)),
        ("1e-4:500", ((1e-4, 100),)),
        ("1e-4:100, 1e-5:200", ((1e-4, 100),)),
        (" 0.5 : 10 ,.25: 20", ((0.5, 10), (0.25, 20))),
    ],
)
def test_pieces_of_a_schedule(text, pieces):
    assert parse_schedule(text, 100).pieces == pieces


def test_values_of_a_schedule():
    schedule = parse_schedule("5e-6:12000, 5e-7:30000", 100000)
    assert [schedule.at(step) for step in (0, 11999, 12000, 29999)] == [5e-6, 5e-6, 5e-7, 5e-7]
    assert schedule.last_step == 30000


@pytest.mark.parametrize(
    "text, marked",
    [
        ("", ">>><<<"),
        ("abc", ">>>abc<<<"),
        ("1e-5:10, x:20", "1e-5:10,>>> x:20<<<"),
        ("1e-5:10, 1e-6:10", ">>> 1e-6:10<<<"),
        ("1e-5:10,,1e-6:20", ">>><<<"),
        ("1e-5:1:2", ">>>1e-5:1:2<<<"),
        ("1e-5:2.5", ">>>1e-5:2.5<<<"),
        ("1e-5:", ">>>1e-5:<<<"),
        ("1e-5:0", ">>>1e-5:0<<<"),
        ("-1e-5", ">>>-1e-5<<<"),
        ("nan", ">>>nan<<<"),
        ("1e-5, oops", "1e-5,>>> oops<<<"),
        ("1,5e-5", "1,>>>5e-5<<<"),
        ("1e-5, 5e-6:30", "1e-5,>>> 5e-6:30<<<"),
        ("1e-5:-1, 5e-6:30", "1e-5:-1,>>> 5e-6:30<<<"),
        ("5e-5:10, 1,5e-6:20", "5e-5:10, 1,>>>5e-6:20<<<"),
        ("1e-5:200, 5e-6:150", "1e-5:200,>>> 5e-6:150<<<"),
    ],
)
def test_parse_errors_mark_the_place(text, marked):
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text, 100)
    assert marked in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, meant", [("1,5e-5", "1.5e-5"), ("0,0001", "0.0001"), ("1e-4:9, 2,5e-6:20", "2.5e-6:20")]
)
def test_names_a_decimal_comma(text, meant):
    with pytest.raises(ScheduleError) as error:
        parse_schedule(text, 100)
    assert meant in str(error.value)


def test_finds_values_that_a_run_never_reaches():
    assert unreached_values("1e-4:50, 1e-5:200, 1e-6", 50) == [1e-5, 1e-6]
    assert unreached_values("1e-4:50, 1e-5:200", 51) == unreached_values("1e-4", 5) == []
    assert [schedule_end(text) for text in ("1e-4", "1e-4:50, 1e-5", "1e-4:50, 1e-5:-1", "1e-4:5,")] == [None] * 3 + [5]


def pieces_by_the_rules(text, max_steps):
    """A second implementation of the WebUI's rules. Return the pieces, or the number of the part that is wrong."""
    parts = text.split(",")
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()  # a trailing comma is allowed
    pieces, last, ended = [], 0, False
    for number, part in enumerate(parts):
        match = re.fullmatch(r"\s*([^:\s]*)\s*(?::\s*([^:\s]*)\s*)?", part)
        if not match or not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", match[1], re.I) or float(match[1]) < 0:
            return number
        if match[2] is not None and not re.fullmatch(r"[+-]?\d+", match[2]):
            return number
        step = None if match[2] is None else int(match[2])
        if step is not None and step != -1 and step < 1:
            return number
        if ended:
            return number  # nothing may follow a part that runs to the end
        if step in (None, -1):
            ended, step = True, max(max_steps, last + 1)
        if step <= last:
            return number
        if last < max_steps:  # later parts are checked, then ignored
            pieces.append((float(match[1]), min(step, max_steps)))
        last = step
    return tuple(pieces)


def random_text(rng):
    def number():
        return rng.choice(["1e-5", "5E-6", "0.001", ".5", "3", "2.", "0", "+1e-4", "1e-05", f"{rng.random():.3g}"])

    def step():
        return rng.choice(
            [str(rng.randint(1, 120)), str(10 * rng.randint(1, 12)), "-1", "0", "-7", "1.5", "", "x", "+8"]
        )

    parts, at = [], 0
    for _ in range(rng.randint(1, 4)):
        at += rng.randint(1, 40)
        chosen = rng.choices(
            [f"{number()}:{at}", number(), f"{number()}:{step()}", f"{number()} : {at}"], [8, 2, 2, 2]
        )[0]
        parts.append(rng.choice(["", " ", "  "]) + chosen)
    text = ",".join(parts) + rng.choice(["", "", "", ",", ", "])
    if rng.random() < 0.3:  # a typo
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(list(",:-ex. ") + ["nan", "::"]) + text[place + rng.randint(0, 1) :]
    return text


def test_random_schedules_equal_a_second_implementation():
    rng, valid = random.Random(0), 0
    for _ in range(10_000):
        text = random_text(rng)
        expected = pieces_by_the_rules(text, 100)
        if isinstance(expected, tuple):
            valid += 1
            assert parse_schedule(text, 100).pieces == expected, text
        else:
            with pytest.raises(ScheduleError) as error:
                parse_schedule(text, 100)
            marked = re.search(r'^"(.*)>>>(.*)<<<', str(error.value), re.S)
            assert marked[1].count(",") == expected and "," not in marked[2], (text, str(error.value))
    assert 3000 < valid < 8000  # enough of either kind


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
def test_learning_rates_equal_diffusers(name, flags, options):
    flags = [*flags, "--max_train_steps=50", "--learning_rate=2e-4", f"--lr_scheduler={name}"]
    optimizer = torch.optim.AdamW([torch.zeros(1, requires_grad=True)], lr=2e-4)
    scheduler = get_scheduler(name, optimizer, num_training_steps=50, **options)
    learning_rate_at = learning_rate_function(parse_config([*REQUIRED, *flags]))
    for step in range(50):
        assert learning_rate_at(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=0), step
        optimizer.step()
        scheduler.step()


def test_without_a_scheduler_the_schedule_applies():
    flags = ["--max_train_steps=50", "--learning_rate=1e-3:20, 1e-4"]
    learning_rate_at = learning_rate_function(parse_config([*REQUIRED, *flags]))
    assert [learning_rate_at(step) for step in (0, 19, 20, 49)] == [1e-3, 1e-3, 1e-4, 1e-4]


def test_clipping_schedule_follows_the_mode():
    config = TrainingConfig(max_grad_norm="1:20, 0.5", max_grad_value="0.1", max_train_steps=50)
    assert clipping_schedule(config).pieces == ((1.0, 20), (0.5, 50))
    config.clip_grad_mode = "value"
    assert clipping_schedule(config).pieces == ((0.1, 50),)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--lr_scheduler=cosin"], "--lr_scheduler.*cosin"),
        (["--lr_scheduler=piecewise_constant"], "--lr_scheduler.*piecewise_constant"),
        (["--lr_scheduler=cosine", "--learning_rate=1e-3:20, 1e-4"], "--lr_scheduler cosine: .*1e-3:20, 1e-4"),
        (["--lr_warmup_steps=5"], "--lr_warmup_steps 5: .*--lr_scheduler"),
        (["--lr_num_cycles=2", "--lr_scheduler=cosine"], "--lr_num_cycles 2: .*cosine_with_restarts"),
        (["--lr_power=2"], "--lr_power 2.0: .*polynomial"),
        (["--lr_scheduler=polynomial", "--learning_rate=1e-9"], "--lr_scheduler polynomial: "),
        (["--learning_rate=0"], "--learning_rate 0: "),
        (["--learning_rate=0,5"], "^--learning_rate .*1e-5"),
        (["--max_grad_norm=0,5"], "^--max_grad_norm ((?!1e-5).)*$"),
        (["--clip_grad_mode=value", "--max_grad_value=0,5"], "^--max_grad_value ((?!1e-5).)*$"),
        (["--lr_scheduler=linear", "--lr_warmup_steps=50", "--max_train_steps=50"], "--lr_warmup_steps 50: "),
    ],
)
def test_user_errors_name_the_option(flags, named):
    with pytest.raises(UserError, match=named) as error:
        parse_config([*REQUIRED, *flags])
    assert "\n" not in str(error.value)


def test_epochs_become_steps():
    config = parse_config([*REQUIRED, "--num_train_epochs=3", "--gradient_accumulation_steps=4"])
    config.count_steps(10)
    assert config.max_train_steps == 8  # 30 batches, four per step
    assert parse_schedule(config.learning_rate, config.max_train_steps).last_step == 8
