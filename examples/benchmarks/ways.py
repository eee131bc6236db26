"""The ways to train and to sample that examples/benchmarks/step.py compares, on UNets of the real shapes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensor

import hypernet
from hypernet.config import Quantization
from hypernet.modeling.attachment import attention_layers
from hypernet.stable_diffusion.quantization import quantize
from hypernet.training.compilation import compile_model, memory_format

REPO = Path(__file__).resolve().parents[2]
SDXL = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
CONFIGS: dict[str, dict[str, Any]] = {"sd15": {"cross_attention_dim": 768, "attention_head_dim": 8}, "sdxl": SDXL}

Inputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, Any]]  # latents, timesteps, text, further arguments
# Prepares a new UNet, whose precision is the dtype, for its kind of step; returns the parameters to train
Way = Callable[[UNet2DConditionModel, torch.dtype], list[torch.nn.Parameter]]


def load_unet(model: str, device: str, dtype: torch.dtype = torch.float32) -> UNet2DConditionModel:
    """Return a frozen UNet of this shape with random weights."""
    if model == "quickstart":
        config = UNet2DConditionModel.load_config(REPO / "examples" / "quickstart" / "model", subfolder="unet")
    else:
        config = CONFIGS[model]
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return UNet2DConditionModel.from_config(config).requires_grad_(False).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def make_inputs(unet: UNet2DConditionModel, batch_size: int, size: int, device: str, dtype: torch.dtype) -> Inputs:
    """Return random latents (B, 4, size / 8, size / 8) of square images of `size` pixels, and text (B, 77, width)."""
    with torch.device(device):
        latents = torch.randn(batch_size, 4, size // 8, size // 8, dtype=dtype)
        text = torch.randn(batch_size, 77, unet.config.cross_attention_dim, dtype=dtype)
        more: dict[str, Any] = {}
        if unet.config.addition_embed_type:
            text_embeds, time_ids = torch.randn(batch_size, 1280, dtype=dtype), torch.ones(batch_size, 6)
            more = {"added_cond_kwargs": {"text_embeds": text_embeds, "time_ids": time_ids}}
        return latents, torch.full((batch_size,), 500), text, more


# --- Ways


def floor(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """The frozen UNet alone."""
    set_memory_format(unet)
    return []


def compiled_floor(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """The frozen UNet alone, compiled."""
    set_memory_format(unet, compiled=True)
    compile_model(unet)
    return []


@dataclasses.dataclass(frozen=True)
class Ours:
    """A hypernetwork attached, with options of the trainer."""

    activation: str = "linear"
    use_linear_maps: bool = True
    checkpointing: bool = False
    quantize: Quantization | None = None
    use_8bit_adam: bool = False
    compile: bool = False
    prior: bool = False  # half as many further images, whose target is the prediction without the hypernetwork

    def __call__(self, unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
        hypernetwork = new_hypernetwork(unet, self.activation)
        if self.quantize:
            quantize(unet, self.quantize, dtype, unet.device)
        set_memory_format(unet, self.compile)
        hypernet.attach(unet, hypernetwork)
        unet._hypernetworks.use_linear_maps = self.use_linear_maps
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()  # otherwise nothing is recomputed
        if self.compile:
            compile_model(unet)
        return list(hypernetwork.parameters())


def webui(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Work as the WebUI's trainer does, reimplemented from its documented behavior.

    Every layer calls its pair of float32 modules (under autocast if there is one), attention is two products and a
    softmax, and every block is recomputed in the backward pass.
    """
    hypernetwork = new_hypernetwork(unet, "linear")

    def transform(part: str) -> Callable:
        def before(projection: torch.nn.Module, args: tuple) -> tuple:
            x = args[0]
            return (x + hypernetwork.pairs[str(x.shape[-1])][part](x),)

        return before

    for layer in attention_layers(unet).values():
        layer.to_k.register_forward_pre_hook(transform("k"))
        layer.to_v.register_forward_pre_hook(transform("v"))
    unet.set_attn_processor(AttnProcessor())
    unet.enable_gradient_checkpointing()
    unet.train()
    return list(hypernetwork.parameters())


def lora(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """A LoRA of rank 16 through PEFT."""
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    # create the weights on the device, since fake tensors cannot be moved
    with torch.device(unet.device), mock.patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module):
        unet.add_adapter(config)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def fused(unet: UNet2DConditionModel, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """A hypernetwork fused into the UNet's weights."""
    set_memory_format(unet)
    if not is_fake(unet):  # its shapes are those of the plain UNet but for a few biases
        hypernet.fuse(unet, new_hypernetwork(unet, "linear").eval())
    return []


TRAINING: dict[str, Way] = {
    "floor": floor,
    "floor, compiled": compiled_floor,
    "webui": webui,
    "module by module": Ours(use_linear_maps=False),
    "ours, linear": Ours(),
    "ours, swish": Ours(activation="swish"),
    "ours, checkpointing": Ours(checkpointing=True),
    "ours, 8-bit AdamW": Ours(use_8bit_adam=True),
    "ours, int8": Ours(quantize="int8"),
    "ours, nf4": Ours(quantize="nf4"),
    "ours, smallest": Ours(checkpointing=True, quantize="nf4", use_8bit_adam=True),
    "ours, prior": Ours(prior=True),
    "ours, compiled": Ours(compile=True),
    "lora": lora,
}
SAMPLING: dict[str, Way] = {"none": floor, "attached": Ours(), "swish": Ours(activation="swish"), "fused": fused}
TABLES = {"training": TRAINING, "sampling": SAMPLING}


def new_hypernetwork(unet: UNet2DConditionModel, activation: str) -> hypernet.Hypernetwork:
    """Return a hypernetwork for all context widths of the UNet, on its device."""
    widths = sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})
    with torch.device(unet.device):
        return hypernet.Hypernetwork(widths, activation=activation).train()


def set_memory_format(unet: UNet2DConditionModel, compiled: bool = False) -> None:
    """Give the weights the memory format they have in training; fake ones keep theirs."""
    if not is_fake(unet):
        unet.to(memory_format=memory_format(unet.device, compiled))


def is_fake(unet: UNet2DConditionModel) -> bool:
    """Whether the weights have shapes but no data."""
    weight = next(unet.parameters())
    return weight.is_meta or isinstance(weight.data, FakeTensor)
