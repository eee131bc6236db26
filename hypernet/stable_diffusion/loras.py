"""LoRAs underneath: loaded through PEFT and folded into the frozen model before a hypernetwork is put on it."""

import contextlib
import math
import warnings
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hypernet.utils.errors import UserError
from hypernet.utils.file_kinds import kind_of
from hypernet.utils.hub import hub_file, is_hub_id

UNDERNEATH = "LoRAs underneath:"
DOWN = ("lora_A", "lora_down", "lora.down")  # the matrix that takes a layer's input, (rank, width)
DIFFUSERS_NAME = "pytorch_lora_weights.safetensors"


def split_lora(text: str) -> tuple[str, float]:
    """("ink.safetensors", 0.8) of "ink.safetensors:0.8"; the scale that is not written is 1.

    Raises:
        UserError: if there is no path, or the scale is no finite number, or 0.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or "\\" in scale:  # (a drive's letter stands before a colon, too)
        path, scale = text, "1"
    if not path or _number(path) is not None or _number(scale) is None:
        raise UserError(f"--lora {text}: write PATH, or PATH:SCALE with a number, such as ink.safetensors:0.8")
    if _number(scale) == 0:
        raise UserError(f"--lora {text}: at a scale of 0 it does nothing; leave it out")
    return path, _number(scale)


def _number(text) -> float | None:
    with contextlib.suppress(ValueError):
        return float(text) if math.isfinite(float(text)) else None


def absolute_lora(text: str) -> str:
    """The same with an absolute path, if it is one."""
    path, scale = split_lora(text)
    return f"{Path(path).resolve()}:{scale:g}" if Path(path).exists() else text


def lora_names(loras) -> str:
    """What they are called, with their scales, wherever they lie: "ink.safetensors:0.8, lineart.safetensors:1"."""
    return ", ".join(f"{Path(path).name}:{scale:g}" for path, scale in map(split_lora, loras))


def record_loras(hypernetwork, loras):
    """Write what lies underneath into the hypernetwork's note of how it was trained; a note of others stays."""
    note = hypernetwork.config.optional_info
    if loras or (note or "").startswith(UNDERNEATH):
        hypernetwork.register_to_config(optional_info=f"{UNDERNEATH} {lora_names(loras)}" if loras else None)


def check_loras(loras, text_width: int):
    """See that each exists and is a LoRA, of a model whose text is so wide; one of the Hub must at least be there.

    Raises:
        UserError: if one does not, or is named twice.
    """
    paths = [split_lora(text)[0] for text in loras]
    for path, text in zip(paths, loras):
        if paths.count(path) > 1:
            raise UserError(f"--lora {text}: it is named twice; name it once, with the scale of both")
        file = find_lora(text)
        if file is not None:
            _check_file(text, file, text_width)


def find_lora(text: str) -> Path | None:
    """Its file, of a folder the one in it; None for a LoRA of the Hub. Raises: UserError if there is none."""
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


def _check_file(text, file, text_width):
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
            kind = kind_of(names)
            keys = [name for name in names if "attn2" in name and "to_k" in name and any(down in name for down in DOWN)]
            widths = {opened.get_slice(name).get_shape()[1] for name in keys}
    except (OSError, SafetensorError):
        raise UserError(f"--lora {text}: it is no .safetensors file, or a damaged one") from None
    if kind != "a LoRA":
        raise UserError(f"--lora {text}: it is {kind or 'something else'}, and no LoRA")
    if widths and text_width not in widths:
        problem = f"it was made for another kind of model: its text is {min(widths)} wide, this model's {text_width}"
        raise UserError(f"--lora {text}: {problem}")


def fuse_loras(pipeline, loras):
    """Load LoRAs through diffusers and PEFT, and add them to the weights of UNet and text encoders for good.

    Folded in they cost nothing at each step, and whatever is keyed by a text encoder's weights knows of them.

    Raises:
        UserError: for one that cannot be loaded, or has nothing for this model.
    """
    scales = {}
    for number, text in enumerate(loras):
        file, (path, scale), name = find_lora(text), split_lora(text), f"lora_{number}"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # PEFT's on a second one
                pipeline.load_lora_weights(str(file or path), adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:120]
            raise UserError(f"--lora {text}: it does not fit this model, or cannot be read ({reason} ...)") from None
        if name not in _adapters(pipeline):
            raise UserError(f"--lora {text}: it has nothing for this model; was it made for another kind?")
        scales[name] = scale
    if scales:
        pipeline.set_adapters(list(scales), list(scales.values()))
        pipeline.fuse_lora(adapter_names=list(scales))
        pipeline.unload_lora_weights()


def _adapters(pipeline) -> set[str]:
    """The names of the LoRAs that have a layer anywhere."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    parts = [getattr(pipeline, name, None) for name in ("unet", "text_encoder", "text_encoder_2")]
    layers = [module for part in parts if part for module in part.modules() if isinstance(module, BaseTunerLayer)]
    return {name for layer in layers for name in layer.scaling}


def write_lora_tag(path, scale: float) -> str:
    """The tag that puts this LoRA under a picture in the WebUI."""
    return f"<lora:{Path(path).stem}:{scale:g}>"
