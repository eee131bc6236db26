"""Write a LoRA in kohya's and in PEFT's naming."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from hypernet.modeling.lora_approximation import Lora
from hypernet.utils.atomic_files import atomic_write


def save_lora(lora: Lora, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
    """Write two files: `path` in kohya's naming, for the WebUI and ComfyUI; NAME_peft beside it for diffusers.

    kohya's format has no biases, so its matrices absorb their average effect; PEFT's holds them exactly.
    """
    kohya, peft = {}, {}
    alpha = float(max((len(down) for down, _ in lora.without_bias.values()), default=1))
    for name, (down, up) in lora.without_bias.items():
        key = "lora_unet_" + name.replace(".", "_")
        kohya[f"{key}.lora_down.weight"] = down  # (rank, in)
        # Programs multiply by alpha / rank, and diffusers takes one alpha for all self-attention layers
        kohya[f"{key}.lora_up.weight"] = up * len(down) / alpha  # (out, rank)
        kohya[f"{key}.alpha"] = torch.tensor(alpha)
    for name, (down, up, bias) in lora.factors.items():
        peft[f"unet.{name}.lora_A.weight"], peft[f"unet.{name}.lora_B.weight"] = down, up
        peft[f"unet.{name}.lora_B.bias"] = bias
    for file, tensors in ((Path(path), kohya), (peft_path(path), peft)):
        with atomic_write(file) as temporary:
            stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
            save_file(stored, temporary, {"format": "pt"})


def peft_path(path: str | Path) -> Path:
    """Return where `save_lora` writes PEFT's format."""
    return Path(path).with_name(f"{Path(path).stem}_peft.safetensors")
