"""Fuse LoRAs into the base model, through PEFT, before a hypernetwork is attached. Imports no torch."""

import contextlib
import math
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from hypernet.utils.errors import UserError, reason
from hypernet.utils.file_kinds import file_problem, kind_of
from hypernet.utils.hub import hub_file, is_hub_id
from hypernet.utils.numbers import meant_number
from hypernet.utils.reading import open_safetensors

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from hypernet.modeling.hypernetwork import Hypernetwork

FUSED_LORAS_PREFIX = "LoRAs underneath:"  # in the WebUI's field `optional_info`; existing files have it
DOWN = ("lora_A", "lora_down", "lora.down")  # the matrix that reads a layer's input, (rank, width)
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def split_lora(text: str) -> tuple[str, float]:
    """Split "ink.safetensors:0.8" into path and scale; the scale defaults to 1.

    Raises:
        UserError: if the path is missing, or the scale is 0 or not a finite number.
    """
    path, colon, scale_text = text.rpartition(":")
    if not colon or "/" in scale_text or "\\" in scale_text:  # a colon also follows a drive's letter
        path, scale_text = text, "1"
    scale = _finite_number(scale_text)
    if not path or _finite_number(path) is not None or scale is None:
        meant = f"{path}:{meant_number(scale_text)}" if meant_number(scale_text) else "ink.safetensors:0.8"
        raise UserError(f"--lora {text}: write PATH, or PATH:SCALE with a number, such as {meant}")
    if scale == 0:
        raise UserError(f"--lora {text}: a scale of 0 has no effect; leave it out")
    return path, scale


def _finite_number(text: str) -> float | None:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    return None


def absolute_lora(text: str) -> str:
    """Make the path of PATH:SCALE absolute if it exists; return a Hub id as it is."""
    path, scale = split_lora(text)
    return f"{Path(path).resolve()}:{scale:g}" if Path(path).exists() else text


def lora_names(loras: Sequence[str]) -> str:
    """Return file names and scales without folders: "ink.safetensors:0.8, lineart.safetensors:1"."""
    return ", ".join(f"{Path(path).name}:{scale:g}" for path, scale in map(split_lora, loras))


def write_lora_tag(path: str, scale: float) -> str:
    """Return the tag that loads this LoRA in the WebUI, with "_" for characters that a tag cannot contain."""
    name = re.sub(r"[<>:\x00-\x1f\ud800-\udfff]", "_", Path(path).stem)
    return f"<lora:{name}:{scale:g}>"


def record_loras(hypernetwork: "Hypernetwork", loras: Sequence[str]) -> None:
    """Record the fused LoRAs in the hypernetwork's `optional_info`. Without LoRAs, text by other programs stays."""
    note = hypernetwork.config.optional_info
    if loras or (note or "").startswith(FUSED_LORAS_PREFIX):
        hypernetwork.register_to_config(optional_info=f"{FUSED_LORAS_PREFIX} {lora_names(loras)}" if loras else None)


def check_loras(loras: Sequence[str], text_width: int) -> None:
    """Check that each LoRA exists and fits the model; on the Hub, only that it exists.

    Args:
        text_width: width of the base model's text embeddings.

    Raises:
        UserError: if one does not, or if one is named twice.
    """
    paths = [split_lora(text)[0] for text in loras]
    for path, text in zip(paths, loras):
        if paths.count(path) > 1:
            raise UserError(f"--lora {text}: it is named twice; name it once, with the sum of the scales")
        file = find_lora(text)
        if file is not None:
            _check_file(text, file, text_width)


def find_lora(text: str) -> Path | None:
    """Return the file of PATH:SCALE, or the one in a folder; None for a LoRA on the Hub.

    Raises:
        UserError: if there is none.
    """
    name, _ = split_lora(text)
    path = Path(name)
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        files = [file for file in files if file.name == DIFFUSERS_NAME] or files
        if len(files) != 1:
            raise UserError(f"--lora {text}: it is a folder with {len(files)} .safetensors files; name the file")
        return files[0]
    if path.exists():
        return path
    is_file_name = path.suffix.lower() in (".safetensors", ".ckpt", ".pt", ".bin")
    if is_file_name or not is_hub_id(name):
        raise UserError(f"--lora {text}: there is no such file")
    try:
        hub_file(path.as_posix())
    except OSError:
        problem = "there is no such file or folder, and the Hub has no such LoRA, or cannot be reached"
        raise UserError(f"--lora {text}: {problem}") from None
    return None


def _check_file(text: str, file: Path, text_width: int) -> None:
    """Check that a file is a LoRA for models with this text width. Raise UserError if not."""
    try:
        with open_safetensors(file) as opened:
            names = list(opened.keys())
            kind = kind_of(names)
            keys = [name for name in names if "attn2" in name and "to_k" in name and any(down in name for down in DOWN)]
            shapes = [opened.get_slice(name).get_shape() for name in keys]
    except (OSError, SafetensorError) as error:
        problem = f"it is not a .safetensors file, or it is damaged ({reason(error)})"
        raise UserError(f"--lora {text}: {file_problem(file) or problem}") from None
    widths = {shape[1] for shape in shapes if len(shape) > 1}
    if kind != "a LoRA":
        raise UserError(f"--lora {text}: it is {kind or 'something else'}, not a LoRA")
    if widths and text_width not in widths:
        problem = f"it was made for another kind of model: its text is {min(widths)} wide, this model's {text_width}"
        raise UserError(f"--lora {text}: {problem}")


def fuse_loras(pipeline: "DiffusionPipeline", loras: Sequence[str]) -> None:
    """Load LoRAs and fuse them into the weights of UNet and text encoders.

    Fused, they cost nothing per step, and change the keys of caches that hash a text encoder's weights.

    Raises:
        UserError: if one cannot be loaded, or has no layer of this model.
    """
    scales = {}
    for number, text in enumerate(loras):
        file, (path, scale), name = find_lora(text), split_lora(text), f"lora_{number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PEFT warns of a second adapter
                pipeline.load_lora_weights(str(file or path), adapter_name=name)
        except Exception as error:  # diffusers does not validate names and shapes
            raise UserError(f"--lora {text}: it does not fit this model, or cannot be read ({reason(error)})") from None
        if not any(name in adapters for adapters in pipeline.get_list_adapters().values()):
            raise UserError(f"--lora {text}: it changes no layer of this model; was it made for another kind?")
        scales[name] = scale
    if scales:
        pipeline.set_adapters(list(scales), list(scales.values()))
        pipeline.fuse_lora(adapter_names=list(scales))
        pipeline.unload_lora_weights()
