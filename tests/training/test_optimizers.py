"""Optimizers by name against the classes themselves; gradient clipping against PyTorch's functions."""

import importlib
import inspect
import sys

import pytest
import torch
from accelerate import Accelerator

from hypernet.cli.optimizer_names import OPTIMIZER_PACKAGES, _class_names
from hypernet.cli.training_options import parse_config
from hypernet.training.optimizers import build_optimizer, check_optimizer, clip_gradients, find_class
from hypernet.utils.errors import UserError
from tests.helpers.scripts import same_weights, train_here

REQUIRED = ["--pretrained_model_name_or_path=m", "--train_data_dir=d"]
CPU = torch.device("cpu")


def optimizers_of(module):
    """Return name -> class of the optimizers in a module."""
    return {
        name: value
        for name, value in vars(importlib.import_module(module)).items()
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and value is not torch.optim.Optimizer
    }


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
def test_options_build_the_named_optimizer(flags, reference):
    config = parse_config([*REQUIRED, "--learning_rate=1e-2", *flags])
    ours = after_three_steps(lambda parameters: build_optimizer(config, parameters, CPU))
    theirs = after_three_steps(reference)
    assert (ours - theirs).abs().max() < 1e-6


def test_options_not_given_keep_the_optimizers_defaults():
    flags = ["--optimizer=Lion8bit", "--adam_beta1=0.95"]
    optimizer = build_optimizer(parse_config([*REQUIRED, *flags]), [torch.nn.Parameter(torch.zeros(3))], CPU)
    assert tuple(optimizer.defaults["betas"]) == (0.95, 0.99)  # Lion's second beta differs from Adam's


def test_option_checks_accept_exactly_the_optimizers_of_torch():
    accepted = _class_names("torch", OPTIMIZER_PACKAGES["torch"])
    assert sorted(accepted) == sorted(optimizers_of("torch.optim"))
    assert {name: find_class(name) for name in accepted} == optimizers_of("torch.optim")


def test_option_checks_accept_exactly_the_optimizers_of_bitsandbytes():
    accepted = _class_names("bitsandbytes", OPTIMIZER_PACKAGES["bitsandbytes"])
    classes = optimizers_of("bitsandbytes.optim")
    assert sorted(accepted) == sorted(classes)
    assert all(find_class(name) in (classes[name], getattr(torch.optim, name, None)) for name in accepted)


def test_unknown_class_is_a_user_error():
    with pytest.raises(UserError, match="--optimizer adamw"):  # option_checks supplies the exact name
        find_class("adamw")


def test_optimizers_of_torch_that_cannot_train_are_refused():
    refused = set()
    for name in optimizers_of("torch.optim"):
        try:
            check_optimizer(parse_config([*REQUIRED, f"--optimizer={name}"]), CPU)
        except UserError as error:
            assert "\n" not in str(error) and f"--optimizer {name}: " in str(error)
            refused.add(name)
    assert refused - {"Muon"} == {"LBFGS", "SparseAdam"}  # Muon takes matrices only; older versions lack it


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--optimizer=AdamV"], r"--optimizer AdamV: .*Adam"),
        (["--optimizer=SGD", "--adam_beta1=0.5"], "--adam_beta1 0.5: .*SGD.* betas"),
        (["--optimizer_args", "momentum=0.9"], "--optimizer_args momentum: .*AdamW.* betas"),
        (["--optimizer=SGD", "--optimizer_args", "momentum=0,9"], "--optimizer_args momentum=0,9: .*momentum=0[.]9"),
        (["--optimizer_args", "momentum"], "--optimizer_args momentum: .*name=value"),
        (["--optimizer=SGD", "--optimizer_args", "nesterov=true"], "--optimizer SGD: .*momentum"),
    ],
)
def test_user_errors_name_the_option(flags, named):
    with pytest.raises(UserError, match=named) as error:
        check_optimizer(parse_config([*REQUIRED, *flags]), CPU)
    assert "\n" not in str(error.value)


def test_missing_prodigy_names_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "prodigyopt", None)  # as if it were not installed
    with pytest.raises(UserError, match="--optimizer Prodigy: .*prodigyopt"):
        check_optimizer(parse_config([*REQUIRED, "--optimizer=Prodigy"]), CPU)


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "Adafactor", "NAdam"])
def test_resumed_run_equals_an_uninterrupted_one(models_dir, images_dir, tmp_path, optimizer):
    flags = [f"--optimizer={optimizer}", "--learning_rate=1e-2", "--checkpointing_steps=2", "--name=x"]
    train_here(models_dir, images_dir, tmp_path / "whole", *flags, "--max_train_steps=4")
    train_here(models_dir, images_dir, tmp_path / "parts", *flags, "--max_train_steps=2")
    train_here(models_dir, images_dir, tmp_path / "parts", *flags, "--max_train_steps=4")
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("mode", ["norm", "value", "none"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1e9])
def test_clipping_equals_torch(mode, threshold):
    def weights():
        generator = torch.Generator().manual_seed(0)
        made = [torch.nn.Parameter(torch.zeros(5, 4)), torch.nn.Parameter(torch.zeros(3))]
        for weight in made:
            weight.grad = torch.randn(weight.shape, generator=generator)
        return made

    ours, theirs = weights(), weights()
    norm = torch.cat([weight.grad.flatten() for weight in theirs]).norm()
    if threshold and mode == "norm":
        torch.nn.utils.clip_grad_norm_(theirs, threshold)
    elif threshold and mode == "value":
        for weight in theirs:
            weight.grad.clamp_(-threshold, threshold)
    assert torch.allclose(clip_gradients(Accelerator(cpu=True), ours, mode, threshold), norm)
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(ours, theirs))


@pytest.mark.parametrize(
    "flags, ratio", [([], 2), (["--optimizer=SGD"], 0), (["--optimizer=SGD", "--optimizer_args", "momentum=0.9"], 1)]
)
def test_the_size_of_the_optimizers_state_is_measured(flags, ratio):
    assert check_optimizer(parse_config([*REQUIRED, *flags]), CPU) == ratio
