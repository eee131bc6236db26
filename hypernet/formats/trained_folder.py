"""What a trained folder says of itself: the run's options and the hypernetwork's config."""
import json
from pathlib import Path

from hypernet.formats.load_save import WEIGHTS_NAME


def training_options(hypernetwork: str) -> dict:
    """What the run that made this folder, checkpoint or file in it was told; nothing for any other."""
    path = Path(hypernetwork)
    for folder in (path.resolve(), *path.resolve().parents[:2]) if path.exists() else ():
        try:
            return json.loads((folder / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return {}


def _is_best(folder: Path) -> bool:
    """Whether it holds the best state of the run in the folder above."""
    return folder.name == "best" and (folder.parent / "run.json").is_file()


def trained_config(folder: Path) -> dict | None:
    """The config of the hypernetwork that this folder holds, None if it holds none."""
    if not (folder / WEIGHTS_NAME).is_file():
        return None
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) and config.get("_class_name") == "Hypernetwork" else None
