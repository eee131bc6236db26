"""The optimizer by its name: any of torch.optim's, of bitsandbytes', or Prodigy."""

import ast
import difflib
import importlib
import inspect
import math

import torch
from accelerate import Accelerator

from hypernet.training.lr_schedule import parse_schedule
from hypernet.utils.errors import UserError

PACKAGES = {"bitsandbytes": "bitsandbytes.optim", "prodigyopt": "prodigyopt"}  # package -> where its optimizers are
# Option -> what optimizers call it, and where in it
OPTIONS = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_weight_decay": "weight_decay", "adam_epsilon": "eps"}


def build_optimizer(config, parameters, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer that the options name, with those of the `adam_…` options that are given.

    Raises:
        UserError: for a name that no installed package has, or an option that it does not take.
    """
    optimizer_class = find_class(config.optimizer)
    takes = inspect.signature(optimizer_class).parameters
    given = config.changed(OPTIONS)
    for option, value in given.items():
        if OPTIONS[option] not in takes:
            raise UserError(f"--{option} {value}: {optimizer_class.__name__} has no {OPTIONS[option]}")
    arguments = {OPTIONS[option]: value for option, value in given.items()}
    if "betas" in arguments:
        own = takes["betas"].default
        arguments["betas"] = (given.get("adam_beta1", own[0]), given.get("adam_beta2", own[1]), *own[2:])
    if "fused" in takes and device.type in ("cpu", "cuda"):  # one kernel for all weights
        arguments["fused"] = True
    arguments |= parse_arguments(config.optimizer_args or [])
    unknown = sorted(set(arguments) - set(takes))
    if unknown:
        usual = ", ".join(name for name in takes if name not in ("params", "lr"))
        raise UserError(
            f"--optimizer_args {unknown[0]}: {optimizer_class.__name__} has no such argument; it has {usual}"
        )
    return optimizer_class(parameters, lr=parse_schedule(config.learning_rate, config.max_train_steps).at(0), **arguments)


def check_optimizer(config, device: torch.device):
    """Let the optimizer make a step on a few numbers.

    Raises:
        UserError: if it is unknown, or cannot do it (LBFGS wants a closure, an 8-bit one a GPU, ...).
    """
    weights = [torch.nn.Parameter(torch.ones(80, 80, device=device)), torch.nn.Parameter(torch.ones(80, device=device))]
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.1)
    try:
        build_optimizer(config, weights, device).step()
    except UserError:
        raise
    except Exception as error:  # each has its own kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--optimizer {config.optimizer}: it cannot train a hypernetwork here ({reason})") from None


def parse_arguments(items: list[str]) -> dict:
    """["momentum=0.9", "nesterov=true"] -> {"momentum": 0.9, "nesterov": True}. Raises: UserError."""
    arguments = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--optimizer_args {item}: write name=value, such as momentum=0.9")
        try:
            arguments[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of that name, in any case; a package is imported only if torch has none. Raises: UserError."""
    classes = _classes(torch.optim)
    if name.lower() in classes:
        return classes[name.lower()]
    missing = []
    for package, module in PACKAGES.items():
        try:
            classes |= {
                key: value for key, value in _classes(importlib.import_module(module)).items() if key not in classes
            }
        except ImportError:
            missing.append(package)
    if name.lower() in classes:
        return classes[name.lower()]
    if name.lower() == "prodigy":
        raise UserError("--optimizer Prodigy: it is not installed; pip install prodigyopt")
    nearest = difflib.get_close_matches(name.lower(), classes, 1)
    hint = f"did you mean {classes[nearest[0]].__name__}?" if nearest else "torch.optim has it not, nor bitsandbytes"
    absent = f" (not installed: {', '.join(missing)})" if missing and not nearest else ""
    raise UserError(f"--optimizer {name}: there is no such optimizer; {hint}{absent}")


def _classes(module):
    found = {key.lower(): value for key, value in vars(module).items() if inspect.isclass(value)}
    return {
        key: value for key, value in found.items() if issubclass(value, torch.optim.Optimizer) and key != "optimizer"
    }


def clip_gradients(accelerator: Accelerator, parameters, mode: str, threshold: float) -> torch.Tensor:
    """Clip what has been accumulated, free of the loss scale; the norm before.

    Args:
        mode: norm, value or none.
        threshold: of the norm or of each value; 0 clips nothing.
    """
    parameters, clips = list(parameters), threshold > 0
    by_norm = threshold if mode == "norm" and clips else math.inf
    norm = accelerator.clip_grad_norm_(parameters, by_norm)  # takes the loss scale out first
    if mode == "value" and clips:
        torch.nn.utils.clip_grad_value_(parameters, threshold)
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
