"""Turn a YAML file with lists of options into runs: one per combination, named after what differs."""

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import os
import re
from pathlib import Path
from typing import Any

from examples.comparison.runs import Run
from hypernet.cli.training_options import argument_type, options_to_flags, parse_bool, parse_config, read_options
from hypernet.config import TrainingConfig
from hypernet.training.run_options import read_record
from hypernet.utils.errors import UserError
from hypernet.utils.user_paths import name_problem

MAX_NAME_BYTES = 120  # a run's name is also its folder's
PER_RUN = ("output_dir", "overwrite", "run_name")  # options that the comparison sets for each run
# Options whose values are, or may be, numbers or flags
NUMBERS: dict[str, type] = dict.fromkeys(("learning_rate", "max_grad_norm", "max_grad_value"), float)
NUMBERS |= {
    field.name: bool if kind is parse_bool else kind
    for field in dataclasses.fields(TrainingConfig)
    if (kind := argument_type(field.type).get("type")) in (int, float, parse_bool)
}


def read_grid(path: Path, output_dir: Path) -> list[Run]:
    """Return the runs of a YAML file with training options, `config:` (a file with more of them) and `grid:`.

    As in scikit-learn's ParameterGrid, `grid` maps options to lists of values, and each combination is a run; a list of
    such maps adds up their runs. The grid overrides the file's own options, and these override its config.

    Raises:
        UserError: for an unknown option, or a value that cannot work.
    """
    entries = read_options(path, "grid")
    try:
        grids = entries.pop("grid", None)
        config = entries.pop("config", None)
        options_to_flags(entries)  # reports unknown options
        shared = {**(read_options(os.path.expanduser(str(config)), "config:") if config else {}), **entries}
        points = [point for grid in (grids if isinstance(grids, list) else [grids]) for point in _combinations(grid)]
        for option in PER_RUN:
            if option in entries or any(option in point for point in points):
                raise UserError(f"{option}: each run gets its own; leave it out")
        runs = []
        names = _name_points(points)
        folders = [output_dir / "runs" / name for name in names]
        # one hypernetwork name for all runs; otherwise, templates with [name] would give each run different prompts
        recorded = [name for folder in folders if (name := read_record(folder).get("name"))]  # they may have moved
        hypernetwork = (recorded or [output_dir.resolve().name])[0]
        if not shared.get("name") and (problem := name_problem(hypernetwork)):
            raise UserError(f"--output_dir {output_dir}: {problem}; name another folder, or add a line with name:")
        for name, folder, point in zip(names, folders, points):
            options = {"name": hypernetwork, **shared, **point, "output_dir": str(folder), "run_name": name}
            options.pop("overwrite", None)
            options = {option: _convert(option, value) for option, value in options.items()}
            parse_config(options_to_flags(options))
            runs.append(Run(name, folder, options))
    except UserError as error:
        raise UserError(f"{path}: {str(error).strip()}") from None
    return runs


def _combinations(grid: Any) -> list[dict[str, Any]]:
    """Return every combination of a grid's values as option -> value."""
    if not isinstance(grid, dict) or not grid:
        raise UserError("grid: it is missing, or has no lines such as activation: [linear, swish]")
    choices = [value if isinstance(value, list) else [value] for value in grid.values()]
    for option, values in zip(grid, choices):
        if not values:
            raise UserError(f"grid: {option}: the list is empty")
        for value in values:
            options_to_flags({option: value})  # reports unknown options and invalid values
    choices = [[_convert(option, value) for value in values] for option, values in zip(grid, choices)]
    return [dict(zip(grid, values)) for values in itertools.product(*choices)]


def format_value(value: Any) -> str:
    """Format an option's value for a page or a file name."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _convert(option: str, value: Any) -> Any:
    """Convert numbers and flags as YAML once did, so that tables and run names stay the same.

    An invalid value stays text; it is reported with the run's other options.
    """
    kind, text = NUMBERS.get(option), value if isinstance(value, str) else ""
    if kind is int and re.fullmatch(r"[-+]?\d+", text):
        return int(text)
    if kind is float and re.fullmatch(r"[-+]?(\d+\.\d*|\.\d+)(e[-+]\d+)?", text, re.IGNORECASE):
        return float(text)
    if kind is bool and text:
        with contextlib.suppress(argparse.ArgumentTypeError):
            return parse_bool(text)
    return value


def _name_points(points: list[dict[str, Any]]) -> list[str]:
    """Return a folder name per point from the options that differ among them, such as "activation=swish,seed=1".

    A single point is named after all its options.
    """
    texts = [{key: format_value(value) for key, value in point.items()} for point in points]
    keys = dict.fromkeys(key for text in texts for key in text)
    differing = [key for key in keys if len({text.get(key) for text in texts}) > 1 or len(texts) == 1]
    names: list[str] = []
    for text in texts:
        label = ",".join(f"{key}={text[key]}" for key in differing if key in text) or "run"
        name = re.sub(r"[^\w.=,+-]+", "_", label).strip("._")
        if len(name.encode()) > MAX_NAME_BYTES or name in names:  # labels may differ only in replaced characters
            short = name.encode()[:MAX_NAME_BYTES].decode(errors="ignore")
            name = f"{short}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        if texts.count(text) > 1:
            point = ",".join(f"{key}={value}" for key, value in text.items())
            raise UserError(f"grid: {point} occurs twice")
        names.append(name)
    return names
