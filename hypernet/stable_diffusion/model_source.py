"""The options that choose the base model and how it reads prompts, for training and generation. Imports no torch."""

import contextlib
import dataclasses
import hashlib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypernet.config import PredictionType, TrainingConfig
from hypernet.stable_diffusion.loras import split_lora
from hypernet.utils.errors import UserError, reason
from hypernet.utils.file_kinds import file_problem
from hypernet.utils.hub import hub_file, is_hub_id
from hypernet.utils.reading import MAX_TEXT, read_json_object
from hypernet.utils.user_paths import path_problem

PREDICTION_TYPES = typing.get_args(PredictionType)
UNREACHED = "the Hub has no such model, or cannot be reached"
UNSAFE = "holds more than weights, possibly harmful code, and is not opened; get it as .safetensors"
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")  # of a whole model in one file


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A base model (diffusers folder, Hub id or single file), what is added to it, and how it reads prompts.

    The fields are the options of the same names in `TrainingConfig`.

    Raises:
        UserError: for a value that cannot work. `check` tests whether paths exist.
    """

    pretrained_model_name_or_path: str
    revision: str | None = None
    variant: str | None = None
    original_config: str | None = None
    model_config: str | None = None
    pretrained_vae_model_name_or_path: str | None = None
    lora: tuple[str, ...] = ()
    prediction_type: str | None = None
    rescale_betas_zero_snr: bool | None = None
    force_zeros_for_empty_prompt: bool | None = None
    clip_skip: int | None = None
    max_token_chunks: int | None = None
    prompt_emphasis: bool = False
    option: str = dataclasses.field(default="--pretrained_model_name_or_path", compare=False)  # for error messages

    def __post_init__(self) -> None:
        if self.prediction_type not in (None, *PREDICTION_TYPES):
            choices = ", ".join(PREDICTION_TYPES)
            raise UserError(f"--prediction_type {self.prediction_type}: choose one of {choices}")
        for option in ("clip_skip", "max_token_chunks"):
            value = getattr(self, option)
            if value is not None and value < 1:
                raise UserError(f"--{option} {value}: it must be 1 or more")
        for lora in self.lora:
            split_lora(lora)

    @classmethod
    def from_options(cls, options: Mapping[str, Any], **changes: Any) -> "ModelSource":
        """Build from options by name, such as those of a run; missing ones get their defaults."""
        given = {key: value for key, value in options.items() if key in MODEL_OPTIONS and value is not None} | changes
        given["lora"] = tuple(given.get("lora") or ())
        return cls(**given)

    @classmethod
    def from_config(cls, config: TrainingConfig) -> "ModelSource":
        """Build from the training options."""
        return cls.from_options({name: getattr(config, name) for name in MODEL_OPTIONS})

    @property
    def path(self) -> str:
        """The folder, Hub id or file."""
        return self.pretrained_model_name_or_path

    @property
    def is_file(self) -> bool:
        """Whether the model is a single file."""
        return Path(self.path).is_file()

    @property
    def name(self) -> str:
        """The name that a hypernetwork records: a file's stem, as in the WebUI, a folder's name, or the Hub id."""
        path = Path(self.path)
        return path.stem if path.is_file() else path.resolve().name if path.exists() else self.path

    def error(self, problem: str) -> UserError:
        """Return an error that names the option and the model."""
        return UserError(f"{self.option} {self.path}: {problem}")

    def check(self) -> None:
        """Check that the path can be a model, and that the options about files fit it.

        Raises:
            UserError: if not.
        """
        path = Path(self.path)
        hub_id = is_hub_id(self.path) and path.suffix.lower() not in SUFFIXES
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise self.error("it is not a model file; those end in .safetensors or .ckpt")
        if not path.exists() and not hub_id:
            raise self.error(path_problem(self.path) or "there is no such file or folder")
        if path.exists() and not path.is_dir() and (problem := file_problem(path)):
            raise self.error(problem)
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise self.error(f"it is not a diffusers folder: it has no model_index.json{_describe_folder(path)}")
        for option in ("revision", "variant") if self.is_file else ("original_config", "model_config"):
            if getattr(self, option):
                where = "on the Hub or in a folder" if self.is_file else "in a single file"
                raise UserError(f"--{option} {getattr(self, option)}: it applies only to a model {where}")
        if self.revision and path.exists():
            raise UserError(f"--revision {self.revision}: it applies only to a model on the Hub; {self.path} is local")
        if self.original_config and (problem := file_problem(self.original_config)):
            raise UserError(f"--original_config {self.original_config}: {problem}; name a YAML file")

    def identity(self) -> str:
        """Return a string that changes with everything that shapes the model's images.

        It covers commits on the Hub, the content of configs, and the sizes and modification times of other files.

        Raises:
            UserError: if the model is neither local nor on the Hub.
        """
        parts = [f"{self.path} {_fingerprint(self.path, self.revision, self.option)}"]
        changed = [name for name in MODEL_OPTIONS[1:] if getattr(self, name) != MODEL_DEFAULTS[name]]
        parts += [f"{name}={getattr(self, name)}" for name in changed]
        others = [self.original_config, self.model_config, self.pretrained_vae_model_name_or_path]
        parts += [_fingerprint(path) for path in [*others, *(split_lora(lora)[0] for lora in self.lora)] if path]
        return f"{self.name} {hashlib.sha256(repr(parts).encode()).hexdigest()}"


MODEL_OPTIONS = tuple(field.name for field in dataclasses.fields(ModelSource) if field.compare)
MODEL_DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelSource)}


def _describe_folder(folder: Path) -> str:
    """Return a hint, to append to a message, about what a folder without a model_index.json holds."""
    with contextlib.suppress(OSError, ValueError):
        found = read_json_object(folder / "config.json").get("_class_name")
        return f"; it holds a {found[:60]}" if isinstance(found, str) else ""
    files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES[:2])
    more = f" (or another of its {len(files)})" if len(files) > 1 else ""
    return f"; to use the model {files[0]}{more}, name the file" if files else ""


def _fingerprint(path: str, revision: str | None = None, option: str | None = None) -> str:
    """Return a string that changes with a file, folder or Hub repository.

    Args:
        option: the base model's option, since the base model must exist. Without it, anything not found is "unknown".
    """
    local = Path(path)
    if not local.exists():
        try:
            found = hub_file(path, "model_index.json", revision) if option else hub_file(path)
            return found.parent.name  # the commit
        except OSError as error:
            if option is None:
                return "unknown"
            raise UserError(f"{option} {path}: it cannot be found ({reason(error)})") from None
    digest = hashlib.sha256()
    for file in [local] if local.is_file() else sorted(local.rglob("*.*")):
        if file.is_file():
            status = file.stat()
            is_config = file.suffix == ".json" and status.st_size <= MAX_TEXT
            content = file.read_bytes() if is_config else f"{status.st_size} {status.st_mtime_ns}"
            name = file.name if file == local else file.relative_to(local).as_posix()
            digest.update(repr((name, content)).encode())
    return digest.hexdigest()
