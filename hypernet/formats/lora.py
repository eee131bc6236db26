"""Write a LoRA in kohya's and in PEFT's naming."""
from pathlib import Path

import torch
from safetensors.torch import save_file

from hypernet.modeling.lora_approximation import Lora
from hypernet.utils.atomic_files import atomic_write


def save_lora(lora: Lora, path, dtype=torch.float32):
    """Write two files: `path` in kohya's naming, for the WebUI and ComfyUI; NAME_peft beside it for diffusers.

    kohya's form has no place for biases, so its matrices take over their mean effect; PEFT's holds them exactly.
    """
    kohya, peft = {}, {}
    alpha = float(max((len(down) for down, _ in lora.without_bias.values()), default=1))
    for name, (down, up) in lora.without_bias.items():
        key = "lora_unet_" + name.replace(".", "_")
        kohya[f"{key}.lora_down.weight"] = down
        kohya[f"{key}.lora_up.weight"] = up * len(down) / alpha  # programs multiply by alpha / rank; diffusers
        kohya[f"{key}.alpha"] = torch.tensor(alpha)  # takes one alpha for all layers of self-attention
    for name, (down, up, bias) in lora.factors.items():
        peft[f"unet.{name}.lora_A.weight"], peft[f"unet.{name}.lora_B.weight"] = down, up
        peft[f"unet.{name}.lora_B.bias"] = bias
    for file, tensors in ((Path(path), kohya), (peft_path(path), peft)):
        with atomic_write(file) as temporary:
            stored = {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
            save_file(stored, temporary, {"format": "pt"})


def peft_path(path) -> Path:
    """Where `save_lora` writes PEFT's form."""
    return Path(path).with_name(f"{Path(path).stem}_peft.safetensors")
