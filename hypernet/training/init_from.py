"""Continue training an existing hypernetwork (`--init_from`): its structure, weights, step and optimizer state."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hypernet.config import TrainingConfig
from hypernet.formats.load_save import load
from hypernet.formats.webui_optimizer import find_optimizer
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.training.lr_schedule import learning_rate_schedule
from hypernet.training.run_options import read_record, same_hypernetwork
from hypernet.utils.errors import UserError

STRUCTURE_OPTIONS = (
    "widths",
    "layer_structure",
    "activation",
    "weight_init",
    "layer_norm",
    "layer_norm_init",
    "activate_output",
    "dropout_structure",
    "skip_connection",
)


@dataclasses.dataclass
class InitialHypernetwork:
    """A hypernetwork to continue training."""

    hypernetwork: Hypernetwork
    moments: dict | None  # AdamW's state by parameter number
    lines: list[str]  # to print

    def restore(self, optimizer: torch.optim.Optimizer) -> None:
        """Load the moments into the optimizer; its options stay those of this run."""
        if self.moments is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.moments})


def load_init_from(config: TrainingConfig, starts_over: bool = False) -> InitialHypernetwork | None:
    """Load the hypernetwork of `--init_from`, and set the structure options of `config` to match it.

    Args:
        starts_over: whether the run starts at its first step, whatever the output folder holds.

    Returns:
        None without the option, or if the output folder has a checkpoint of this run to resume from.

    Raises:
        UserError: if it is not a hypernetwork, its structure differs from the options, its optimizer state is damaged,
            or the run has no steps left.
    """
    if config.init_from is None:
        return None
    earlier = None if starts_over else _options_of_earlier_run(config, config.init_from)
    if earlier is not None:
        _set_structure(config, earlier)  # the file itself may be gone or trained further by now
        config.init_from = earlier["init_from"]
        return None
    hypernetwork = load(config.init_from)
    step, last_step = hypernetwork.config.step, learning_rate_schedule(config).last_step
    if step >= last_step:
        problem = f"it has been trained for {step} steps, and this run ends at {last_step}; raise --max_train_steps"
        raise UserError(f"--init_from {config.init_from}: {problem}, or the end of the learning rate schedule")
    _set_structure(config, hypernetwork.config)
    if config.optimizer == "AdamW":
        state, line = find_optimizer(config.init_from, hypernetwork)
    else:
        state, line = None, f"{config.optimizer} starts from scratch: only AdamW's state can be restored"
    structure = f"structure {config.layer_structure}, activation {config.activation}, widths {config.widths}"
    structure += f", skip connections {config.skip_connection}" if config.skip_connection else ""
    lines = [f"Continuing from {config.init_from}, step {step}", f"  {structure}", f"  {line}"]
    return InitialHypernetwork(hypernetwork, state and state["state"], lines)


def _options_of_earlier_run(config: TrainingConfig, init_from: str) -> dict[str, Any] | None:
    """Return the options of the run in the output folder, if it has a checkpoint and started from the same file."""
    output = Path(config.output_dir)
    if not any(output.glob("checkpoints/step-*/optimizer.bin")):
        return None
    options = read_record(output)
    return options if same_hypernetwork(options.get("init_from"), str(Path(init_from).resolve())) else None


def _set_structure(config: TrainingConfig, structure: Mapping[str, Any]) -> None:
    """Set the structure options; raise UserError if one was given and differs."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for option in STRUCTURE_OPTIONS:
        value = structure[option]
        if isinstance(value, (list, tuple)):
            value = ",".join(str(int(number) if number == int(number) else number) for number in value)
        given = str(getattr(config, option)).replace(" ", "")
        if given not in (str(defaults[option]), str(value)):
            problem = f"{config.init_from} has {value}; remove this option, also from --config"
            raise UserError(f"--{option} {given}: {problem}")
        setattr(config, option, value)
