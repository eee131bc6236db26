"""Write the YAML files that examples/compare.py takes, make up results; train its runs without a process for each."""

import contextlib
import gc
import os
from pathlib import Path
from typing import IO, Any

import yaml
from accelerate.state import AcceleratorState

import train_hypernetwork
from examples.comparison.results import Result
from examples.comparison.runs import Run
from hypernet.cli.script import run_script
from hypernet.cli.training_options import parse_config


class ProcessWithin:
    """Takes the place of `subprocess.Popen` for a training, which it runs within this process."""

    pid = 2**22 + 1  # no process has it

    def __init__(self, command: list[str], env: dict[str, str], stdout: IO[str], **_: Any) -> None:
        flags = command[command.index(str(Path(train_hypernetwork.__file__))) + 1 :]
        gc.collect()  # a run that has failed before keeps its folder locked until its traceback is gone
        before, self.code = dict(os.environ), 0
        AcceleratorState._reset_state(True)
        try:
            os.environ.update(env)
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stdout):
                run_script(lambda: train_hypernetwork.main(parse_config(flags)))
        except SystemExit as end:
            self.code = end.code
        finally:
            os.environ.clear()
            os.environ.update(before)

    def wait(self) -> int:
        return self.code


def write_yaml(path: Path, **entries: Any) -> Path:
    """Write a YAML file and return its path."""
    path.write_text(yaml.safe_dump(entries, sort_keys=False))
    return path


def required_options(models_dir: Path, images_dir: Path) -> dict[str, Any]:
    """Return the options that every run on the tiny model needs."""
    return {
        "pretrained_model_name_or_path": str(models_dir / "epsilon"),
        "train_data_dir": str(images_dir),
        "cache_dir": str(models_dir / "cache"),
        "resolution": 64,
    }


def make_result(
    name: str, scores: tuple[float, float] | None = None, base: float | None = None, **values: Any
) -> Result:
    """Make up the result of a run named "ACTIVATION SEED".

    Args:
        scores: prompt fidelity and style distance.
        base: the validation loss of the base model.
    """
    options = {"activation": name.split()[0], "seed": int(name.split()[1]), "min_prompt_fidelity": 0.8}
    options |= values.pop("options", {})
    if scores:
        fidelity, distance = scores
        values |= {"prompt_fidelity": fidelity, "style_distance": distance}
        values["score"] = min(max(fidelity, 0), 1) * (1 - min(max(distance, 0), 1))
    problem = values.pop("problem", None)
    return Result(Run(name, Path("nowhere"), options), options, problem, [], [], val_loss_base=base, **values)
