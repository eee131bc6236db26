"""Which Stable Diffusion is used, and how it is read: the options that training and drawing share, by their names."""

import dataclasses
import hashlib
import re
from pathlib import Path

from hypernet.config import TrainingConfig
from hypernet.stable_diffusion.loras import split_lora
from hypernet.utils.errors import UserError
from hypernet.utils.hub import hub_file, is_hub_id

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
UNREACHED = "the Hub has no such model, or cannot be reached"
UNSAFE = "holds more than weights, which could be harmful code, and is not opened; get it as .safetensors"
SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth")  # of a whole model in one file


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """A diffusers folder, a Hub id or a single file, with what goes on it and how prompts are read.

    Raises:
        UserError: for a value that cannot work; whether paths exist is seen by `check`.
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
    option: str = dataclasses.field(default="--pretrained_model_name_or_path", compare=False)  # in messages

    def __post_init__(self):
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
    def of(cls, options: dict, **changes) -> "ModelSource":
        """From options by their names, those of a run, say; what they leave out has its default."""
        given = {key: value for key, value in options.items() if key in NAMES and value is not None} | changes
        given["lora"] = tuple(given.get("lora") or ())
        return cls(**given)

    @classmethod
    def from_config(cls, config: TrainingConfig) -> "ModelSource":
        """The base model that the training options name."""
        return cls.of({name: getattr(config, name) for name in NAMES})

    @property
    def path(self) -> str:
        return self.pretrained_model_name_or_path

    @property
    def is_file(self) -> bool:
        return Path(self.path).is_file()

    @property
    def name(self) -> str:
        """The model as the hypernetwork remembers it: a file's stem, as in the WebUI, a folder's name, or a Hub id."""
        path = Path(self.path)
        return path.stem if path.is_file() else path.resolve().name if path.exists() else self.path

    def error(self, problem: str) -> UserError:
        return UserError(f"{self.option} {self.path}: {problem}")

    def check(self):
        """Raises: UserError if there can be no model there, or one of the files beside it does not exist."""
        path, hub_id = Path(self.path), is_hub_id(self.path)
        if path.is_file() and path.suffix.lower() not in SUFFIXES:
            raise self.error("it is a file, but no model; one ends in .safetensors or .ckpt")
        if not path.exists() and not hub_id:
            raise self.error("there is no such file or folder")
        if path.is_dir() and not (path / "model_index.json").is_file():
            raise self.error(f"there is no model_index.json in it, so it is no diffusers folder{self._hint(path)}")
        for option in ("revision", "variant") if self.is_file else ("original_config", "model_config"):
            if getattr(self, option):
                where = "on the Hub or in a folder" if self.is_file else "in a single file"
                raise UserError(f"--{option} {getattr(self, option)}: it belongs to a model {where}")
        if self.revision and path.exists():
            raise UserError(f"--revision {self.revision}: it belongs to a model on the Hub, and {self.path} is here")
        if self.original_config and not Path(self.original_config).is_file():
            problem = "it is a folder" if Path(self.original_config).exists() else "there is no such file"
            raise UserError(f"--original_config {self.original_config}: {problem}; name a YAML file")

    def _hint(self, folder: Path) -> str:
        """What may have been meant by a folder that is no model."""
        config = folder / "config.json"
        if config.is_file():
            found = re.search(r'"_class_name": "(\w+)"', config.read_text(encoding="utf-8", errors="replace"))
            return f"; it holds a {found[1]}" if found else ""
        files = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in SUFFIXES[:2])
        more = f" (or another of its {len(files)})" if len(files) > 1 else ""
        return f"; if you mean the model {files[0]}{more}, name the file" if files else ""

    def identity(self) -> str:
        """Changes with the model and with whatever shapes its pictures: commits, configs, files' sizes and times."""
        parts = [f"{self.path} {_stamp(self.path, self.revision, self.option)}"]
        parts += [f"{name}={getattr(self, name)}" for name in NAMES[1:] if getattr(self, name) != DEFAULTS[name]]
        beside = [self.original_config, self.model_config, self.pretrained_vae_model_name_or_path]
        parts += [_stamp(path) for path in [*beside, *(split_lora(lora)[0] for lora in self.lora)] if path]
        return f"{self.name} {hashlib.sha256(repr(parts).encode()).hexdigest()}"


NAMES = tuple(field.name for field in dataclasses.fields(ModelSource) if field.compare)
DEFAULTS = {field.name: field.default for field in dataclasses.fields(ModelSource)}


def _stamp(path: str, revision=None, option=None) -> str:
    """What tells whether it is the same: a commit of the Hub; or configs, sizes and times."""
    place = Path(path)
    if not place.exists():
        try:
            found = hub_file(path, "model_index.json", revision) if option else hub_file(path)
            return found.parent.name
        except OSError as error:
            if option is None:
                return "unknown"
            raise UserError(f"{option} {path}: it cannot be found ({' '.join(str(error).split())})") from None
    digest = hashlib.sha256()
    for file in [place] if place.is_file() else sorted(place.rglob("*.*")):
        if file.is_file():
            status = file.stat()
            content = file.read_bytes() if file.suffix == ".json" else f"{status.st_size} {status.st_mtime_ns}"
            name = file.name if file == place else file.relative_to(place).as_posix()
            digest.update(repr((name, content)).encode())
    return digest.hexdigest()
