"""A hypernetwork that a run goes on with (`--init_from`): its structure, weights and step, and its optimizer's state."""

import dataclasses
import json
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.formats.load_save import load
from hypernet.formats.webui_optimizer import find_optimizer
from hypernet.modeling.hypernetwork import Hypernetwork
from hypernet.training.lr_schedule import parse_schedule
from hypernet.utils.errors import UserError

STRUCTURE_OPTIONS = ("widths", "layer_structure", "activation", "weight_init", "layer_norm", "layer_norm_init")
STRUCTURE_OPTIONS += ("activate_output", "dropout_structure")


@dataclasses.dataclass
class InitialHypernetwork:
    hypernetwork: Hypernetwork
    moments: dict | None  # AdamW's, by parameter number
    lines: list[str]  # what to tell

    def restore(self, optimizer):
        """Give the optimizer its moments back; its options stay those of this run."""
        if self.moments is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.moments})


def load_init_from(config: TrainingConfig) -> InitialHypernetwork | None:
    """What `--init_from` names; None without it, or where the run has a training state of its own to go on from.

    Either way the structure becomes the configuration's.

    Raises:
        UserError: if it is no hypernetwork, its optimizer's state is damaged, or no steps are left for it.
    """
    if config.init_from is None:
        return None
    begun = _begun_run(config)
    if begun is not None:
        _take_structure(config, begun)  # the file itself may be gone, or trained further, by now
        config.init_from = begun["init_from"]
        return None
    hypernetwork = load(config.init_from)
    step, last = hypernetwork.config.step, parse_schedule(config.learning_rate, config.max_train_steps).last_step
    if step >= last:
        problem = f"it has been trained for {step} steps already, and the run ends at {last}; raise --max_train_steps"
        raise UserError(f"--init_from {config.init_from}: {problem}, or the learning rate schedule's end")
    _take_structure(config, hypernetwork.config)
    if config.optimizer == "AdamW":
        state, line = find_optimizer(config.init_from, hypernetwork)
    else:
        state, line = None, f"the optimizer starts anew: what goes on is AdamW's state, not {config.optimizer}'s"
    structure = f"structure {config.layer_structure}, activation {config.activation}, widths {config.widths}"
    lines = [f"Going on from {config.init_from}, step {step}", f"  {structure}", f"  {line}"]
    return InitialHypernetwork(hypernetwork, state and state["state"], lines)


def _begun_run(config) -> dict | None:
    """The options of the run in the output folder, if it began with the same file and has a training state."""
    output = Path(config.output_dir)
    if (
        config.overwrite
        or config.resume_from_checkpoint == "none"
        or not any(output.glob("checkpoints/step-*/optimizer.bin"))
    ):
        return None
    try:
        options = json.loads((output / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = options.get("init_from") in (config.init_from, str(Path(config.init_from).resolve()))
    return options if same and all(option in options for option in STRUCTURE_OPTIONS) else None


def _take_structure(config, given):
    """Let the configuration have the structure that is given. Raises: UserError if it asks for another one."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for option in STRUCTURE_OPTIONS:
        value = given[option]
        if isinstance(value, (list, tuple)):
            value = ",".join(str(int(number) if number == int(number) else number) for number in value)
        asked = str(getattr(config, option)).replace(" ", "")
        if asked not in (str(defaults[option]), str(value)):
            raise UserError(
                f"--{option} {asked}: {config.init_from} has {value}; leave it out (of --config, too) with --init_from"
            )
        setattr(config, option, value)
