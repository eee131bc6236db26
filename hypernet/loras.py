"""LoRAs underneath: loaded through PEFT and folded into the frozen model before a hypernetwork is put on it."""

import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

from hypernet.errors import UserError
from hypernet.recognise import kind_of


def split_lora(text: str) -> tuple[str, float]:
    """("ink.safetensors", 0.8) of "ink.safetensors:0.8"; the scale that is not written is 1.

    Raises:
        UserError: if nothing stands before the colon, or the scale is no finite number.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or "\\" in scale:  # (a drive's letter stands before a colon, too)
        path, scale = text, "1"
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not path or not math.isfinite(number):
        raise UserError(f"--lora {text}: write PATH, or PATH:SCALE with a number, such as ink.safetensors:0.8")
    return path, number


def absolute_lora(text: str) -> str:
    """The same with an absolute path, if it is one."""
    path, scale = split_lora(text)
    return f"{Path(path).resolve()}:{scale:g}" if Path(path).exists() else text


def lora_names(loras) -> str:
    """What they are called, with their scales, wherever they lie: "ink.safetensors:0.8, lineart.safetensors:1"."""
    return ", ".join(f"{Path(path).name}:{scale:g}" for path, scale in map(split_lora, loras))


def check_loras(loras):
    """Raises: UserError for one that does not exist or is something else; a Hub id is looked at when it is loaded."""
    for text in loras:
        path, problem = Path(split_lora(text)[0]), None
        if path.is_file():
            try:
                with safe_open(path, framework="pt") as file:
                    kind = kind_of(file.keys())
            except (OSError, SafetensorError):
                kind = "no .safetensors"
            problem = f"it is {kind or 'something else'}, and no LoRA" if kind != "a LoRA" else None
        elif not path.exists() and (len(path.parts) != 2 or path.suffix == ".safetensors"):
            problem = "there is no such file"
        if problem:
            raise UserError(f"--lora {text}: {problem}")


def fold_in(pipeline, loras):
    """Load LoRAs through diffusers and PEFT, and add them to the weights of UNet and text encoders for good.

    Folded in they cost nothing at each step, and whatever is keyed by a text encoder's weights knows of them.

    Raises:
        UserError: for one that cannot be loaded, or has nothing for this model.
    """
    scales = {}
    for number, text in enumerate(loras):
        (path, scale), name = split_lora(text), f"lora_{number}"
        try:
            pipeline.load_lora_weights(path, adapter_name=name)
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--lora {text}: it does not fit this model, or cannot be read ({reason})") from None
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
