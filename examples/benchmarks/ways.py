"""The ways of training and drawing that examples/benchmarks/step.py puts side by side, on UNets of the true shapes."""

import dataclasses
from pathlib import Path
from unittest import mock

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig
from torch._subclasses.fake_tensor import FakeTensor

import hypernet
from hypernet.modeling.attachment import attention_layers
from hypernet.stable_diffusion.quantization import quantize
from hypernet.training.compilation import OPTIONS, memory_format

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
CONFIGS = {"sd15": {"cross_attention_dim": 768, "attention_head_dim": 8}, "sdxl": SDXL}


def load_unet(model, device, dtype=torch.float32):
    """The UNet, frozen."""
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


def make_inputs(unet, batch, size, device, dtype):
    side = size // 8
    with torch.device(device):
        latents = torch.randn(batch, 4, side, side, dtype=dtype)
        text = torch.randn(batch, 77, unet.config.cross_attention_dim, dtype=dtype)
        more = {}
        if unet.config.addition_embed_type:
            added = {"text_embeds": torch.randn(batch, 1280, dtype=dtype), "time_ids": torch.ones(batch, 6)}
            more = {"added_cond_kwargs": added}
        return latents, torch.full((batch,), 500), text, more


# --- Each way makes a new UNet ready for its kind of step and gives the parameters to train


def floor(unet, dtype):
    lay_out(unet)
    return []


@dataclasses.dataclass(frozen=True)
class Ours:
    """A hypernetwork attached, with options of the training."""

    activation: str = "linear"
    folding: bool = True
    checkpointing: bool = False
    quantize: str | None = None
    use_8bit_adam: bool = False
    compile: bool = False

    def __call__(self, unet, dtype):
        hypernetwork = new_hypernetwork(unet, self.activation)
        if self.quantize:
            quantize(unet, self.quantize, dtype, unet.device)
        lay_out(unet, self.compile)
        hypernet.attach(unet, hypernetwork)
        unet._hypernetworks.folding = self.folding
        if self.checkpointing:
            unet.enable_gradient_checkpointing()
            unet.train()  # or nothing is computed twice
        if self.compile:
            unet.compile(dynamic=False, options=OPTIONS)
        return list(hypernetwork.parameters())


def webui(unet, dtype):
    """From the facts: a pair of float32 modules called in every layer, under autocast if there is one, attention as two
    products and a softmax, and the recomputation of every block that the WebUI trains with."""
    hypernetwork = new_hypernetwork(unet, "linear")

    def transform(part):
        def before(projection, args):
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


def lora(unet, dtype):
    config = LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"])
    # on the device at once, for what has no data cannot be moved
    with torch.device(unet.device), mock.patch.object(torch.nn.Module, "to", lambda module, *args, **kwargs: module):
        unet.add_adapter(config)
    return [parameter for parameter in unet.parameters() if parameter.requires_grad]


def merged(unet, dtype):
    lay_out(unet)
    if not is_fake(unet):  # (its shapes are the plain one's but for a few biases)
        hypernet.fuse(unet, new_hypernetwork(unet, "linear").eval())
    return []


TRAINING = {
    "floor": floor,
    "webui": webui,
    "module by module": Ours(folding=False),
    "ours, linear": Ours(),
    "ours, swish": Ours(activation="swish"),
    "ours, checkpointing": Ours(checkpointing=True),
    "ours, int8": Ours(quantize="int8"),
    "ours, nf4": Ours(quantize="nf4"),
    "ours, smallest": Ours(checkpointing=True, quantize="nf4", use_8bit_adam=True),
    "ours, compiled": Ours(compile=True),
    "lora": lora,
}
SAMPLING = {"none": floor, "attached": Ours(), "swish": Ours(activation="swish"), "merged": merged}
TABLES = {"training": TRAINING, "sampling": SAMPLING}


def new_hypernetwork(unet, activation):
    widths = sorted({layer.to_k.in_features for layer in attention_layers(unet).values()})
    with torch.device(unet.device):
        return hypernet.Hypernetwork(widths, activation=activation).train()


def lay_out(unet, compiled=False):
    """As the training lays the weights; tensors without data have no say in it."""
    if not is_fake(unet):
        unet.to(memory_format=memory_format(unet.device, compiled))


def is_fake(unet) -> bool:
    weight = next(unet.parameters())
    return weight.is_meta or isinstance(weight.data, FakeTensor)
