"""Read the configs of a model's folder or Hub repository, and check that every entry has a type that diffusers expects.

A config that passes can be used without further checks. (diffusers itself accepts any JSON, and fails later in any way,
or builds a model that does not fit into memory.)
"""

import inspect
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin

from hypernet.utils.errors import one_line
from hypernet.utils.hub import hub_file
from hypernet.utils.reading import read_json_object

Config = dict[str, Any]
MAX_LAYERS = 100  # of a block or an encoder; CLIP's largest has 32
MAX_NUMBER = 10**7  # no width, size, number of timesteps or vocabulary comes near it
MAX_KEY = 200  # characters
MAX_ITEMS = 10_000  # of a list; some schedulers list a number for each timestep
LOADED_PARTS = ("unet", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
LIBRARIES = ("diffusers", "transformers")


def read_config(
    path: str, revision: str | None, model_class: type[ConfigMixin] | None, subfolder: str | None = None
) -> Config:
    """Read a config from a model's folder or Hub repository, and check it.

    Args:
        model_class: the class that it describes; `DiffusionPipeline` for a model_index.json, None for a text encoder.

    Raises:
        OSError: if there is none.
        ValueError: if it is not JSON, or an entry is impossible; the message names the file.
    """
    name = model_class.config_name if model_class else "config.json"
    name = f"{subfolder}/{name}" if subfolder else name
    file = Path(path, name) if Path(path).exists() else hub_file(path, name, revision)
    try:
        config = read_json_object(file)
        if model_class is DiffusionPipeline:
            return check_index(config)
        is_other = (
            model_class and issubclass(model_class, ModelMixin) and config.get("_class_name") != model_class.__name__
        )
        return check_config(config, None if is_other else model_class)
    except OSError as error:
        raise OSError(error.errno, f"{name}: {error.strerror}", str(path)) from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def check_config(config: Any, model_class: type[ConfigMixin] | None = None) -> Config:
    """Return a config whose entries have the types of the constructor's arguments, and plausible sizes.

    Args:
        model_class: the class that it describes; None if only the sizes are known.

    Raises:
        ValueError: if it is not an object, or an entry is impossible; the message names the entry.
    """
    if not isinstance(config, Mapping):
        raise ValueError("it holds no JSON object {...}")
    parameters = inspect.signature(model_class.__init__).parameters if model_class else {}
    for key, value in config.items():
        if len(key) > MAX_KEY:
            raise ValueError(f"no entry is called {one_line(key, 60)}")
        if key.startswith("_"):
            continue
        is_negative = type(value) is int and value < 0 and model_class and issubclass(model_class, ModelMixin)
        if is_negative or not _is_sensible(value, MAX_LAYERS if "layers" in key else MAX_NUMBER):
            raise ValueError(f"its {one_line(key, 60)} cannot be {one_line(repr(value), 60)}")
        if key in parameters and not _fits(value, parameters[key].annotation, parameters[key].default):
            raise ValueError(f"its {key} cannot be {one_line(repr(value), 60)}")
    return dict(config)


def _is_sensible(value: Any, limit: float, depth: int = 0) -> bool:
    """Return whether this is a text, a finite number of at most `limit`, or a list or object of such."""
    if isinstance(value, float):
        return math.isfinite(value) and abs(value) <= max(limit, MAX_NUMBER)
    if isinstance(value, int):
        return abs(value) <= limit
    if isinstance(value, (list, tuple, Mapping)):
        items = value.values() if isinstance(value, Mapping) else value
        return len(value) <= MAX_ITEMS and depth < 5 and all(_is_sensible(item, limit, depth + 1) for item in items)
    return True


def _fits(value: Any, annotation: Any, default: Any) -> bool:
    """Return whether a value from JSON can be an argument with this annotation and default."""
    if isinstance(annotation, str) or annotation in (Any, inspect.Parameter.empty):
        return True
    if value is None:
        return default is None or isinstance(default, bool) or type(None) in typing.get_args(annotation)
    kinds = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    return any(_fits_kind(value, kind) for kind in kinds)


def _fits_kind(value: Any, kind: Any) -> bool:
    if _is_union(kind):
        return any(_fits_kind(value, one) for one in typing.get_args(kind))
    origin = typing.get_origin(kind) or kind
    if origin is typing.Literal:
        return type(value) in map(type, typing.get_args(kind))
    if origin is bool:
        return value in (0, 1) and isinstance(value, int)
    if origin in (int, float):
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return is_number and (origin is float or value == int(value))
    if origin is str:
        return isinstance(value, str)
    if origin in (tuple, list):
        items = [item for item in typing.get_args(kind) if item is not Ellipsis]
        return isinstance(value, (list, tuple)) and (
            not items or all(any(_fits_kind(one, item) for item in items) for one in value)
        )
    return origin is not type(None)  # another class, such as an array


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def check_index(index: Any) -> Config:
    """Return a model_index.json whose parts are pairs of a library and a class.

    Raises:
        ValueError: if it is something else, or names a class of a library other than diffusers and transformers.
    """
    index = check_config(index)
    for key, value in index.items():
        is_pair = isinstance(value, list) and len(value) == 2 and all(one is None or type(one) is str for one in value)
        if key in LOADED_PARTS and not (value is None or is_pair) or isinstance(value, (list, dict)) and not is_pair:
            raise ValueError(f"its {one_line(key, 60)} is not a pair of a library and a class")
        if key in LOADED_PARTS and is_pair and value[1] is not None and value[0] not in LIBRARIES:
            raise ValueError(f"its {key} is of the library {one_line(repr(value[0]), 60)}, not of diffusers")
    if not isinstance(index.get("_class_name", ""), str):
        raise ValueError("its _class_name is not a text")
    return index


class _PlainLoader(yaml.SafeLoader):
    """Loads YAML without aliases, with which a few lines can expand to more than fits into memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has aliases (*name); write the values out")
        return super().compose_node(parent, index)


def parse_original_config(text: str) -> Config:
    """Return an original config, in CompVis' or Stability's format.

    Raises:
        ValueError: if it is something else.
    """
    try:
        config = yaml.load(text, _PlainLoader)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # YAMLError, or what a malformed number or date raises
        raise ValueError(f"it cannot be read as YAML ({one_line(error)})") from None
    model = config.get("model") if isinstance(config, dict) else None
    if not isinstance(model, dict) or not isinstance(model.get("params") or {}, dict):
        raise ValueError("it is not in CompVis' or Stability's format, which has a top-level key model")
    return config
