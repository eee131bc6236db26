"""Optimizers by name: what they are built with, what they do, which are refused."""

import pytest
import torch

import hypernet
from hypernet.cli.training_options import parse_config
from hypernet.training.optimizers import build_optimizer, check_optimizer
from hypernet.utils.errors import UserError
from tests.helpers.scripts import train_here

NEEDED = ["--pretrained_model_name_or_path=m", "--train_data_dir=d"]
CPU = torch.device("cpu")


def after_three_steps(build):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(9, 7))
    optimizer = build([weight])
    for i in range(3):
        weight.grad = torch.randn(9, 7, generator=torch.Generator().manual_seed(i))
        optimizer.step()
    return weight


@pytest.mark.parametrize(
    "flags, reference",
    [
        ([], lambda p: torch.optim.AdamW(p, lr=1e-2)),
        (
            ["--adam_beta1=0.8", "--adam_weight_decay=0.1"],
            lambda p: torch.optim.AdamW(p, 1e-2, (0.8, 0.999), 1e-8, 0.1),
        ),
        (["--optimizer=adamax", "--adam_epsilon=1e-3"], lambda p: torch.optim.Adamax(p, lr=1e-2, eps=1e-3)),
        (
            ["--optimizer=SGD", "--optimizer_args", "momentum=0.9", "nesterov=true"],
            lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
        ),
        (["--optimizer=Adam", "--adam_weight_decay=0.01"], lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.01)),
        (["--optimizer=RAdam", "--adam_beta2=0.99"], lambda p: torch.optim.RAdam(p, lr=1e-2, betas=(0.9, 0.99))),
    ],
)
def test_it_is_the_one_that_is_named(flags, reference):
    config = parse_config([*NEEDED, "--learning_rate=1e-2", *flags])
    ours = after_three_steps(lambda parameters: build_optimizer(config, parameters, CPU))
    theirs = after_three_steps(reference)
    assert (ours - theirs).abs().max() < 1e-6


def test_what_is_not_given_is_the_optimizers_own():
    flags = ["--optimizer=Lion8bit", "--adam_beta1=0.95"]
    built = build_optimizer(parse_config([*NEEDED, *flags]), [torch.nn.Parameter(torch.zeros(3))], CPU)
    assert tuple(built.defaults["betas"]) == (0.95, 0.99)  # Lion's second one is not Adam's


def test_every_one_of_torch_works_or_is_refused_in_one_line():
    works, refused = [], []
    for name in (
        "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS NAdam RAdam RMSprop Rprop SGD SparseAdam"
    ).split():
        try:
            check_optimizer(parse_config([*NEEDED, f"--optimizer={name}"]), CPU)
            works.append(name)
        except UserError as error:
            assert "\n" not in str(error) and f"--optimizer {name}: it cannot train" in str(error)
            refused.append(name)
    assert refused == ["LBFGS", "SparseAdam"] and len(works) == 12


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--optimizer=AdamV"], r"--optimizer AdamV: there is no such optimizer; did you mean Adam"),
        (["--optimizer=SGD", "--adam_beta1=0.5"], "--adam_beta1 0.5: SGD has no betas"),
        (["--optimizer_args", "momentum=0.9"], "--optimizer_args momentum: AdamW has no such argument; it has betas"),
        (["--optimizer_args", "momentum"], "--optimizer_args momentum: write name=value"),
        (["--optimizer=SGD", "--optimizer_args", "nesterov=true"], "--optimizer SGD: it cannot train .*momentum"),
    ],
)
def test_mistakes_get_one_line(flags, message):
    with pytest.raises(UserError, match=message) as error:
        check_optimizer(parse_config([*NEEDED, *flags]), CPU)
    assert "\n" not in str(error.value)


def test_prodigy_is_asked_for_by_its_package(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "prodigyopt", None)  # as if it were not installed
    with pytest.raises(UserError, match="--optimizer Prodigy: it is not installed; pip install prodigyopt"):
        check_optimizer(parse_config([*NEEDED, "--optimizer=Prodigy"]), CPU)


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "Adafactor", "NAdam"])
def test_a_resumed_run_goes_on_exactly_with_it(models_dir, images_dir, tmp_path, optimizer):
    flags = [
        f"--optimizer={optimizer}",
        "--learning_rate=1e-2",
        "--checkpointing_steps=2",
        "--name=x",
        "--max_train_steps",
    ]
    train_here(models_dir, images_dir, tmp_path / "whole", *flags, "4")
    train_here(models_dir, images_dir, tmp_path / "parts", *flags, "2")
    train_here(models_dir, images_dir, tmp_path / "parts", *flags, "4")
    whole, parts = (hypernet.load(tmp_path / run).state_dict() for run in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
