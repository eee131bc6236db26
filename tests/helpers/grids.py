"""Write the YAML files that examples/compare.py takes."""

from pathlib import Path
from typing import Any

import yaml


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
