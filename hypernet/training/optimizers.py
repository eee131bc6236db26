"""Build the optimizer by its name, and clip gradients."""

import ast
import contextlib
import importlib
import inspect
import math
import re
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator

from hypernet.config import TrainingConfig
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.utils.errors import UserError

MODULES = ("torch.optim", "bitsandbytes.optim", "prodigyopt")  # searched in this order
# Option -> the optimizer's argument that it sets
ARGUMENTS = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_weight_decay": "weight_decay", "adam_epsilon": "eps"}
Parameters = Iterable[torch.nn.Parameter]


def build_optimizer(config: TrainingConfig, parameters: Parameters, device: torch.device) -> torch.optim.Optimizer:
    """Return the optimizer of `--optimizer`, with the `--adam_...` options and `--optimizer_args` that were given.

    Raises:
        UserError: if no installed package has it, or it lacks one of these arguments.
    """
    optimizer_class = find_class(config.optimizer)
    accepted = inspect.signature(optimizer_class).parameters
    given = config.changed(ARGUMENTS)
    for option, value in given.items():
        if ARGUMENTS[option] not in accepted:
            raise UserError(f"--{option} {value}: {config.optimizer} has no argument {ARGUMENTS[option]}")
    arguments = {ARGUMENTS[option]: value for option, value in given.items()}
    if "betas" in arguments:
        default = accepted["betas"].default
        arguments["betas"] = (given.get("adam_beta1", default[0]), given.get("adam_beta2", default[1]), *default[2:])
    if "fused" in accepted and device.type in ("cpu", "cuda"):  # one kernel for all weights
        arguments["fused"] = True
    arguments |= parse_optimizer_args(config.optimizer_args or [])
    unknown = sorted(set(arguments) - set(accepted))
    if unknown:
        names = ", ".join(name for name in accepted if name not in ("params", "lr"))
        raise UserError(f"--optimizer_args {unknown[0]}: {config.optimizer} has no such argument; it has {names}")
    learning_rate = learning_rate_schedule(config).at(0)
    return optimizer_class(parameters, lr=learning_rate, **arguments)


def check_optimizer(config: TrainingConfig, device: torch.device) -> float:
    """Take a step with the optimizer on a few weights. Return the bytes of its state per byte of the weights.

    Raises:
        UserError: if that fails: LBFGS needs a closure, some 8-bit optimizers need a GPU.
    """
    weights = [torch.nn.Parameter(torch.ones(80, 80, device=device)), torch.nn.Parameter(torch.ones(80, device=device))]
    for weight in weights:
        weight.grad = torch.full_like(weight, 0.1)
    try:
        optimizer = build_optimizer(config, weights, device)
        optimizer.step()
    except UserError:
        raise
    except Exception as error:  # every optimizer raises its own kinds of errors
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--optimizer {config.optimizer}: it cannot train a hypernetwork here ({reason})") from None
    state = [value for value in optimizer.state[weights[0]].values() if torch.is_tensor(value)]
    return sum(value.nbytes for value in state if value.numel() >= weights[0].numel()) / weights[0].nbytes


def parse_optimizer_args(items: list[str]) -> dict[str, Any]:
    """Parse ["momentum=0.9", "nesterov=true"] into {"momentum": 0.9, "nesterov": True}.

    Raises:
        UserError: if an item is not of the form name=value.
    """
    arguments: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"--optimizer_args {item}: write name=value, such as momentum=0.9")
        if re.fullmatch(r"\d+,\d+", text):  # Python reads 0,9 as two numbers
            raise UserError(
                f"--optimizer_args {item}: write {name}={text.replace(',', '.')}, or ({text}) for two values"
            )
        try:
            arguments[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            arguments[name] = text
    return arguments


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """Return the optimizer class of this exact name; a package is imported only if those before it lack the class.

    Raises:
        UserError: if no installed package has it.
    """
    for module in MODULES:
        with contextlib.suppress(ImportError):
            found = getattr(importlib.import_module(module), name, None)
            if inspect.isclass(found):  # torch.optim.adamw is a module
                return found
    raise UserError(f"--optimizer {name}: no installed package has it")


def clip_gradients(accelerator: Accelerator, parameters: Parameters, mode: str, threshold: float) -> torch.Tensor:
    """Unscale the gradients and clip them in place. Return their norm before clipping.

    Args:
        mode: norm, value or none.
        threshold: of the norm or of each value; 0 disables clipping.
    """
    parameters, clips = list(parameters), threshold > 0
    max_norm = threshold if mode == "norm" and clips else math.inf
    norm = accelerator.clip_grad_norm_(parameters, max_norm)  # removes the loss scale first
    if mode == "value" and clips:
        torch.nn.utils.clip_grad_value_(parameters, threshold)
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
