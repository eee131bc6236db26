"""A whole model in one file, as the WebUI has it: what is in it, by the names and shapes of its tensors alone."""

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
import yaml
from diffusers.loaders.single_file_utils import (
    DIFFUSERS_DEFAULT_PIPELINE_PATHS,
    create_diffusers_clip_model_from_ldm,
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
    infer_diffusers_model_type,
    load_single_file_checkpoint,
)
from huggingface_hub import hf_hub_download, snapshot_download
from safetensors import SafetensorError, safe_open

from hypernet.stable_diffusion.model_source import UNREACHED, UNSAFE, ModelSource
from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hub import is_hub_id

KINDS = ("v1", "v2", "xl_base")  # by diffusers' names
UNET = "model.diffusion_model.input_blocks.0.0.weight"
NEEDED = {  # names begin so -> what is missing where none does
    "first_stage_model.": "VAE; name one with --pretrained_vae_model_name_or_path",
    ("cond_stage_model.", "conditioner."): "text encoder; take a file that holds the whole model",
}
CONFIG_FILES = ["*.json", "*.txt", "*/*.json", "*/*.txt"]
# Where diffusers looks for text encoders' configs and tokenizers if there is an original config alone
CLIP, OPEN_CLIP = ("openai/clip-vit-large-patch14", ""), ("stabilityai/stable-diffusion-2", "tokenizer")
BIG_CLIP = ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "")
TOKENIZERS = {"v1": [CLIP], "v2": [OPEN_CLIP], "xl_base": [CLIP, BIG_CLIP]}


@dataclasses.dataclass
class SingleFile:
    """What a file of a whole model tells before its weights are read."""

    path: str
    kind: str
    configs: str | None  # a diffusers folder of the same kind; None: the original config has to do
    original: dict | None  # the original config (a YAML of CompVis' or Stability's)
    unet: dict | None  # diffusers' configs made of it
    vae: dict | None
    prediction_type: str | None  # where the file or the original config says it
    zero_snr: bool
    text_width: int  # of the text that the UNet takes


def open_single_file(source: ModelSource) -> SingleFile:
    """Look at the file, and find configs for it: those of --model_config, else of the kind's repository on the Hub.

    Raises:
        UserError: if it is no model that can be trained, something in it is missing, or there are no configs for it.
    """
    tensors = read_shapes(source.path, source.error)
    if UNET not in tensors:
        kind = kind_of(name.removeprefix("first_stage_model.") for name in tensors)
        raise source.error(f"it is {kind or 'something else'}, and no whole Stable Diffusion in one file")
    kind = infer_diffusers_model_type(tensors)
    kind = "EDM" if any(name.startswith("edm_") for name in tensors) else kind
    if kind not in KINDS:
        raise source.error(f"it is a model of the kind {kind}; Stable Diffusion 1.x, 2.x and SDXL can be trained")
    for prefixes, missing in NEEDED.items():
        has_vae = source.pretrained_vae_model_name_or_path and prefixes == "first_stage_model."
        if not has_vae and not any(name.startswith(prefixes) for name in tensors):
            raise source.error(f"there is no {missing}")
    original = _read_original(source)
    prediction_type = _read_prediction(source, kind, tensors, original)
    configs = _find_configs(source, kind, original)
    unet = vae = None
    if original:
        try:
            unet = create_unet_diffusers_config_from_ldm(original, tensors)
            vae = create_vae_diffusers_config_from_ldm(original, tensors)
        except (KeyError, TypeError, AttributeError) as error:
            problem = f"it does not describe a Stable Diffusion ({type(error).__name__}: {error})"
            raise UserError(f"--original_config {source.original_config}: {problem}") from None
    width = next((tensor.shape[-1] for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    return SingleFile(source.path, kind, configs, original, unet, vae, prediction_type, "ztsnr" in tensors, width)


def _read_prediction(source, kind, tensors, original) -> str | None:
    """What the file or the original config says that the model predicts, None if neither says anything.

    Trainers of velocity models leave an empty tensor `v_pred`, and `ztsnr` beside it, which ComfyUI goes by, too.
    """
    if "v_pred" in tensors:
        return "v_prediction"
    if original:
        parameters = (original.get("model") or {}).get("params") or {}
        is_velocity = parameters.get("parameterization") == "v" or "VScaling" in str(original)
        return "v_prediction" if is_velocity else "epsilon"
    if kind == "v2" and not (source.prediction_type or source.model_config):
        hint = "add --prediction_type epsilon (base models, 512 pixels) or v_prediction (768 pixels)"
        raise source.error(f"a Stable Diffusion 2.x in a single file does not say what it predicts; {hint}")
    return None


def read_shapes(path: str, error_of: Callable[[str], UserError]) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `.ckpt` by name, without memory; no code of it is run.

    Raises:
        UserError: if it cannot be read so; `error_of` makes it of what is wrong.
    """
    path = Path(path)
    try:
        if path.suffix.lower() == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}
        with open(path, "rb") as file:
            kind = kind_of([file.read(64).decode("latin-1")])
        if kind:
            raise error_of(f"it is {kind}, and no model")
        found = torch.load(path, map_location="meta", weights_only=True)
        while isinstance(found, dict) and "state_dict" in found:
            found = found["state_dict"]
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
    except pickle.UnpicklingError:
        raise error_of(f"it {UNSAFE}") from None
    except (SafetensorError, OSError, RuntimeError, EOFError, AttributeError, ValueError, KeyError) as error:
        raise error_of(f"it is damaged, or no model ({' '.join(str(error).split())[:200]})") from None


def _read_original(source) -> dict | None:
    if source.original_config is None:
        return None
    try:
        config = yaml.safe_load(Path(source.original_config).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = f"it cannot be read as YAML ({' '.join(str(error).split())})"
        raise UserError(f"--original_config {source.original_config}: {problem}") from None
    if not isinstance(config, dict) or "model" not in config:
        problem = "it is no config of CompVis' or Stability's; those begin with model:"
        raise UserError(f"--original_config {source.original_config}: {problem}")
    return config


def _find_configs(source, kind, original) -> str | None:
    """A folder with configs and tokenizers: that of --model_config, or the kind's, which the Hub or its cache here has."""
    wanted = source.model_config or DIFFUSERS_DEFAULT_PIPELINE_PATHS[kind]["pretrained_model_name_or_path"]
    if Path(wanted).is_dir():
        if not (Path(wanted) / "model_index.json").is_file():
            raise UserError(
                f"--model_config {wanted}: there is no model_index.json in it, so it is no diffusers folder"
            )
        return wanted
    if source.model_config and not is_hub_id(wanted):
        problem = "it is a file" if Path(wanted).exists() else "there is no such folder"
        raise UserError(f"--model_config {wanted}: {problem}; name a diffusers folder of the same kind")
    try:
        return snapshot_download(wanted, allow_patterns=CONFIG_FILES)
    except (OSError, ValueError):  # (ValueError: no name that a repository can have)
        pass
    if source.model_config:
        problem = f"it is not here, and {UNREACHED}"
        raise UserError(f"--model_config {wanted}: {problem}")
    if original is None:
        problem = f"its configs are not in it, and {wanted}, which has them, cannot be reached"
        hint = "name a diffusers folder of the same kind with --model_config"
        raise source.error(f"{problem}; {hint}, or its YAML with --original_config")
    for name, subfolder in TOKENIZERS[kind]:
        try:
            hf_hub_download(name, "vocab.json", subfolder=subfolder or None)
        except OSError:
            problem = f"its tokenizer is neither in it nor in that YAML, and {name}, which has it, cannot be reached"
            raise source.error(f"{problem}; name a diffusers folder of the same kind with --model_config") from None
    return None


def encoders_without_configs(single: SingleFile, dtype: torch.dtype) -> dict:
    """Text encoders and tokenizers, by the pipeline's names, where there is an original config alone.

    (diffusers does that for the tokenizers of earlier versions of transformers only.)
    """
    checkpoint, parts = load_single_file_checkpoint(single.path), {}
    for name, suffix, (repo, subfolder) in zip(
        ("CLIPTextModel", "CLIPTextModelWithProjection"), ("", "_2"), TOKENIZERS[single.kind]
    ):
        encoder = getattr(transformers, name)
        parts[f"text_encoder{suffix}"] = create_diffusers_clip_model_from_ldm(
            encoder, checkpoint, torch_dtype=dtype, is_legacy_loading=True
        )
        parts[f"tokenizer{suffix}"] = transformers.CLIPTokenizer.from_pretrained(repo, subfolder=subfolder)
    return parts
