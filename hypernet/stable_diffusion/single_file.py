"""Identify a whole model in one file, as the WebUI keeps it, from nothing but the names and shapes of its tensors.

diffusers' public `from_single_file` reads the weights. Before that, the kind of the file and the meaning of an original
config must be known, which only diffusers' internal `single_file_utils` can tell.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    create_unet_diffusers_config_from_ldm,
    create_vae_diffusers_config_from_ldm,
    infer_diffusers_model_type,
)
from huggingface_hub import hf_hub_download, snapshot_download
from transformers import CLIPTokenizer

from hypernet.stable_diffusion.configs import check_config, parse_original_config
from hypernet.stable_diffusion.model_source import UNREACHED, UNSAFE, ModelSource
from hypernet.utils.errors import UserError, reason
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hub import is_hub_id
from hypernet.utils.pickle_scanner import Refused, RefusedCode, scan_saved
from hypernet.utils.reading import open_safetensors, read_text

# diffusers' name of a kind of model -> the repository where diffusers gets its configs
KINDS = {
    "v1": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "v2": "stabilityai/stable-diffusion-2-1",
    "xl_base": "stabilityai/stable-diffusion-xl-base-1.0",
}
MAX_ORIGINAL_CONFIG = 2**18  # bytes; those published with models have 2 to 5 kB
UNET = "model.diffusion_model.input_blocks.0.0.weight"
NEEDED = {  # prefixes of tensor names -> what is missing if no name has one
    ("first_stage_model.",): "VAE; name one with --pretrained_vae_model_name_or_path",
    ("cond_stage_model.", "conditioner."): "text encoder; use a file that holds the whole model",
}
CONFIG_FILES = ["*.json", "*.txt", "*/*.json", "*/*.txt"]
# Where to get tokenizers if only an original config is given: where diffusers gets the text encoders' configs
CLIP, OPEN_CLIP = ("openai/clip-vit-large-patch14", ""), ("stabilityai/stable-diffusion-2", "tokenizer")
BIG_CLIP = ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", "")
TOKENIZERS = {"v1": [CLIP], "v2": [OPEN_CLIP], "xl_base": [CLIP, BIG_CLIP]}


@dataclasses.dataclass
class SingleFile:
    """What is known of a whole model in one file before its weights are read."""

    path: str
    kind: str  # a key of KINDS
    configs: str | None  # a diffusers folder of the same kind; None if only the original config is available
    original: dict[str, Any] | None  # the original config, a YAML in CompVis' or Stability's format
    unet_config: dict[str, Any] | None  # diffusers' configs, derived from the original config
    vae_config: dict[str, Any] | None
    prediction_type: str | None  # None if neither the file nor the original config says
    zero_terminal_snr: bool
    text_width: int  # width of the text embeddings that the UNet takes


def open_single_file(source: ModelSource) -> SingleFile:
    """Inspect the file, and find configs for it: those of --model_config, else its kind's on the Hub.

    Raises:
        UserError: if it is not a model that can be trained, is incomplete, or there are no configs for it.
    """
    tensors = read_shapes(source.path, source.error)
    kind = _identify_kind(source, tensors)
    original = _read_original_config(source)
    prediction_type = _find_prediction_type(source, kind, tensors, original)
    configs = _find_configs(source, kind, original)
    unet_config = vae_config = None
    if original:
        try:
            unet_config = create_unet_diffusers_config_from_ldm(original, tensors)
            vae_config = create_vae_diffusers_config_from_ldm(original, tensors)
            unet_config = check_config(unet_config, UNet2DConditionModel)
            vae_config = check_config(vae_config, AutoencoderKL)
        except Exception as error:  # diffusers does not validate the values
            problem = f"it does not describe a Stable Diffusion model ({type(error).__name__}: {reason(error)})"
            raise UserError(f"--original_config {source.original_config}: {problem}") from None
    return SingleFile(
        path=source.path,
        kind=kind,
        configs=configs,
        original=original,
        unet_config=unet_config,
        vae_config=vae_config,
        prediction_type=prediction_type,
        zero_terminal_snr="ztsnr" in tensors,
        text_width=next((x.shape[-1] for key, x in tensors.items() if key.endswith("attn2.to_k.weight") and x.ndim), 0),
    )


def _identify_kind(source: ModelSource, tensors: dict[str, torch.Tensor]) -> str:
    """Return the kind of model. Raise UserError if it cannot be trained, or a part is missing."""
    if UNET not in tensors:
        kind = kind_of(name.removeprefix("first_stage_model.") for name in tensors)
        raise source.error(f"it is {kind or 'something else'}, not a whole Stable Diffusion model in one file")
    try:
        kind = "EDM" if any(name.startswith("edm_") for name in tensors) else infer_diffusers_model_type(tensors)
    except Exception:  # diffusers expects the usual shapes
        raise source.error("it is damaged, or not a model (its tensors have unusual shapes)") from None
    if kind not in KINDS:
        raise source.error(f"it is a model of the kind {kind}; Stable Diffusion 1.x, 2.x and SDXL can be trained")
    for prefixes, missing in NEEDED.items():
        has_other_vae = source.pretrained_vae_model_name_or_path and "first_stage_model." in prefixes
        if not has_other_vae and not any(name.startswith(prefixes) for name in tensors):
            raise source.error(f"it has no {missing}")
    return kind


def _find_prediction_type(
    source: ModelSource, kind: str, tensors: dict[str, torch.Tensor], original: dict[str, Any] | None
) -> str | None:
    """Return the prediction type that the file or the original config states; None if neither does.

    Trainers of v-prediction models add an empty tensor `v_pred`, and `ztsnr` for zero terminal SNR; ComfyUI reads them
    too.
    """
    if "v_pred" in tensors:
        return "v_prediction"
    if original:
        parameters = (original.get("model") or {}).get("params") or {}
        is_velocity = parameters.get("parameterization") == "v" or "VScaling" in str(original)
        return "v_prediction" if is_velocity else "epsilon"
    if kind == "v2" and not (source.prediction_type or source.model_config):
        hint = "add --prediction_type epsilon (base models, 512 pixels) or v_prediction (768 pixels)"
        raise source.error(f"a Stable Diffusion 2.x file does not say what it predicts; {hint}")
    return None


def read_shapes(path: str, error_of: Callable[[str], UserError]) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.safetensors` or `.ckpt` on the meta device, by name. No code in it is run.

    Args:
        error_of: builds the error from a description of the problem.

    Raises:
        UserError: if the file cannot be read this way.
    """
    file = Path(path)
    try:
        if file.suffix.lower() == ".safetensors":
            with open_safetensors(file) as opened:
                return {name: torch.empty(opened.get_slice(name).get_shape(), device="meta") for name in opened.keys()}
        return _named_tensors(scan_saved(file).content)
    except RefusedCode:
        raise error_of(f"it {UNSAFE}") from None
    except OSError as error:
        raise error_of(f"it cannot be read ({error.strerror or reason(error)})") from None
    except Exception as error:  # damaged files raise errors of any kind
        words = error.words if isinstance(error, Refused) else ()
        kind = kind_of(words) if len(words) == 1 else None  # the first bytes of another kind of file
        problem = f"it is {kind}, not a model" if kind else f"it is damaged, or not a model ({reason(error)})"
        raise error_of(problem) from None


def check_pickles(folder: Path) -> None:
    """Scan the pickled weights in the folder of a model's part, which are loaded if there are no `.safetensors`.

    Raises:
        Refused: if one holds anything but tensors, or is damaged.
        OSError: if one cannot be read.
    """
    for file in () if any(folder.glob("*.safetensors")) else sorted(folder.glob("*.bin")):
        scan_saved(file)


def _named_tensors(content: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a `.ckpt` by name, as diffusers finds them: in the innermost `state_dict`.

    Raises:
        ValueError: if there are none, or diffusers would search forever.
    """
    outer: list[Any] = []
    while isinstance(content, dict) and "state_dict" in content:
        if any(content is other for other in outer[-100:]) or len(outer) > 100:
            raise ValueError("its state_dict holds itself")
        outer.append(content)
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise ValueError("its tensors have no names")
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}


def _read_original_config(source: ModelSource) -> dict[str, Any] | None:
    if source.original_config is None:
        return None
    try:
        return parse_original_config(read_text(source.original_config, MAX_ORIGINAL_CONFIG))
    except OSError as error:
        problem = error.strerror or reason(error)
        raise UserError(f"--original_config {source.original_config}: {problem}; name a YAML file") from None
    except ValueError as error:
        raise UserError(f"--original_config {source.original_config}: {error}") from None


def _find_configs(source: ModelSource, kind: str, original: dict[str, Any] | None) -> str | None:
    """Return a folder with configs and tokenizers: --model_config, or the kind's from the Hub or its local cache.

    Returns None if there is no such folder, but an original config and tokenizers to go with it.

    Raises:
        UserError: if that is not enough to load the model.
    """
    repo = source.model_config or KINDS[kind]
    if Path(repo).is_dir():
        if not (Path(repo) / "model_index.json").is_file():
            raise UserError(f"--model_config {repo}: it is not a diffusers folder: it has no model_index.json")
        return repo
    if source.model_config and not is_hub_id(repo):
        problem = "it is a file" if Path(repo).exists() else "there is no such folder"
        raise UserError(f"--model_config {repo}: {problem}; name a diffusers folder of the same kind")
    try:
        return snapshot_download(repo, allow_patterns=CONFIG_FILES)
    except (OSError, ValueError):  # ValueError: not a valid repository name
        pass
    if source.model_config:
        raise UserError(f"--model_config {repo}: there is no such folder, and {UNREACHED}")
    hint = "name a diffusers folder of the same kind with --model_config"
    if original is None:
        problem = f"it has no configs, and {repo}, which has them, cannot be reached"
        raise source.error(f"{problem}; {hint}, or its YAML with --original_config")
    for name, subfolder in TOKENIZERS[kind]:
        try:
            hf_hub_download(name, "vocab.json", subfolder=subfolder or None)
        except OSError:
            problem = f"neither it nor the YAML has its tokenizer, and {name}, which has it, cannot be reached"
            raise source.error(f"{problem}; {hint}") from None
    return None


def tokenizers_without_configs(kind: str) -> dict[str, CLIPTokenizer]:
    """Return the tokenizers, by the pipeline's names, for a model with only an original config.

    diffusers then builds the other parts, but with transformers 5 no tokenizers.
    """
    return {
        f"tokenizer{suffix}": CLIPTokenizer.from_pretrained(repo, subfolder=subfolder)
        for suffix, (repo, subfolder) in zip(("", "_2"), TOKENIZERS[kind])
    }
