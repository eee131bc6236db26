"""Find an optimizer's exact name without importing the packages, which takes seconds."""

import ast
import difflib
import importlib.util
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.modeling.structure import find_word
from hypernet.utils.errors import UserError

# How names in kohya's scripts and OneTrainer begin -> the nearest here
SIMILAR = {"dadapt": "Prodigy", "sgdnesterov": "SGD --optimizer_args momentum=0.9 nesterov=true"}
OPTIMIZER_PACKAGES = {"torch": "optim", "bitsandbytes": "optim", "prodigyopt": ""}


def optimizer_name(config: TrainingConfig) -> str:
    """Return the exact class name of --optimizer; --use_8bit_adam stands for AdamW8bit.

    Raises:
        UserError: if no installed package has it.
    """
    name = config.optimizer
    if config.use_8bit_adam:
        if name.lower() not in ("adamw", "adamw8bit"):
            raise UserError(f"--use_8bit_adam: it stands for --optimizer AdamW8bit, but --optimizer is {name}")
        name = "AdamW8bit"
    names: dict[str, str] = {}
    for package, module in OPTIMIZER_PACKAGES.items():
        names = {found.lower(): found for found in _class_names(package, module)} | names  # torch comes first
    if (found := find_word(name, names.values())) in names.values():
        return found
    if name.lower() == "prodigy":
        raise UserError("--optimizer Prodigy: it is not installed; pip install prodigyopt")
    nearest = [names[near] for near in difflib.get_close_matches(name.lower(), names, 1)]
    nearest = [hint for start, hint in SIMILAR.items() if name.lower().startswith(start)] or nearest
    hint = f"did you mean {nearest[0]}?" if nearest else "use one of torch.optim or bitsandbytes"
    raise UserError(f"--optimizer {name}: there is no such optimizer; {hint}")


def _class_names(package: str, module: str) -> list[str]:
    """List the classes that a package's __init__.py imports, read from its source: importing it takes seconds."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0], module, "__init__.py").read_text(encoding="utf-8")
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)]
    names = [alias.asname or alias.name for node in imported for alias in node.names]
    return [name for name in names if name[0].isupper() and name != "Optimizer" and not name.startswith("Global")]
