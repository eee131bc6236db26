"""A YAML file with lists of options becomes runs: each combination one, called after what differs."""

import hashlib
import itertools
import re
from pathlib import Path

from examples.comparison.runs import Run
from hypernet.cli.training_options import options_to_flags, parse_config, read_options
from hypernet.utils.errors import UserError

MOST_BYTES = 120  # of a run's name; it names a folder
OWN = ("output_dir", "overwrite", "run_name")  # set for each run


def read_grid(path: Path, output_dir: Path) -> list[Run]:
    """The runs of a file of options, `config:` (a file of more of them) and `grid:`.

    The grid maps options to lists of values, and each combination is a run; or it is a list of such maps, whose runs
    are added up (the meaning of scikit-learn's ParameterGrid). What is said in the grid wins, then the file, then its config.

    Raises:
        UserError: for an unknown option, or a value that cannot work, before anything is trained.
    """
    entries = read_options(path, "grid")
    try:
        grids = entries.pop("grid", None)
        config = entries.pop("config", None)
        options_to_flags(entries)  # are there such options?
        shared = {**(read_options(config, "config:") if config else {}), **entries}
        points = [point for grid in (grids if isinstance(grids, list) else [grids]) for point in _combinations(grid)]
        for name in OWN:
            if name in entries or any(name in point for point in points):
                raise UserError(f"{name}: each run gets its own; leave it out")
        names = _names(points)
        runs = []
        for name, point in zip(names, points):
            # one name for all, or templates with [name] would give each run prompts of its own
            options = {"name": output_dir.resolve().name, **shared, **point}
            options |= {"output_dir": str(output_dir / "runs" / name), "run_name": name}
            options.pop("overwrite", None)
            parse_config(options_to_flags(options))
            runs.append(Run(name, output_dir / "runs" / name, options))
    except UserError as error:
        raise UserError(f"{path}: {str(error).strip()}") from None
    return runs


def _combinations(grid) -> list[dict]:
    if not isinstance(grid, dict) or not grid:
        raise UserError("grid: it is missing, or holds no lines such as activation: [linear, swish]")
    values = [value if isinstance(value, list) else [value] for value in grid.values()]
    for key, choices in zip(grid, values):
        options_to_flags({key: None})  # is there such an option?
        if not choices:
            raise UserError(f"grid: {key}: the list is empty")
    return [dict(zip(grid, choice)) for choice in itertools.product(*values)]


def shown(value) -> str:
    """An option's value as a page or a file name has it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _names(points: list[dict]) -> list[str]:
    """ "activation=swish,seed=1" of each point: the options that differ among them, fit for a folder's name.

    One point alone is called after all its options.
    """
    texts = [{key: shown(value) for key, value in point.items()} for point in points]
    keys = dict.fromkeys(key for text in texts for key in text)
    differing = [key for key in keys if len({text.get(key) for text in texts}) > 1 or len(texts) == 1]
    names = []
    for text in texts:
        told = ",".join(f"{key}={text[key]}" for key in differing if key in text) or "run"
        name = re.sub(r"[^\w.=,+-]+", "_", told).strip("._")
        if len(name.encode()) > MOST_BYTES or name in names:  # alike but for letters that no folder takes
            short = name.encode()[:MOST_BYTES].decode(errors="ignore")
            name = f"{short}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"
        if texts.count(text) > 1:
            raise UserError(f"grid: {told} is there twice")
        names.append(name)
    return names
