"""The frozen UNet's attention blocks in 4 or 8 bits, through bitsandbytes, for cards on which half precision is too large."""

import torch
from torch import nn

from hypernet.errors import UserError

QUANTIZATIONS = ("nf4", "int8")
ROWS, COLUMNS = 32, 64  # of which sides must be multiples for nf4, on CPUs


def check_quantize(kind: str | None):
    """Raises: UserError if bitsandbytes, which does it, is missing."""
    if kind is not None:
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:
            raise UserError(f"--quantize {kind}: it needs bitsandbytes; pip install bitsandbytes") from None


def quantize(unet, kind: str, dtype: torch.dtype):
    """Replace the linear layers of the attention blocks; their weights are rounded when the UNet moves to its device.

    nf4 is QLoRA's 4-bit number (Dettmers et al. 2023), int8 the vector-wise 8-bit product of LLM.int8() (Dettmers et al.
    2022). Convolutions, norms and embeddings of the timestep stay as they are. Gradients flow through to what is put on
    the contexts; the weights themselves have none.

    Args:
        kind: "nf4" or "int8".
        dtype: in which products are computed.

    Raises:
        UserError: if no layer can be.
    """
    layers = _layers(unet, kind)
    if not layers:
        raise UserError(
            f"--quantize {kind}: the UNet has no layer of a size that bitsandbytes takes ({ROWS} and {COLUMNS})"
        )
    for name, layer in layers:
        unet.set_submodule(name, _quantized(layer, kind, dtype))


def _layers(unet, kind) -> list[tuple[str, nn.Linear]]:
    """The attention blocks' linear layers; of nf4 those of sizes that fit everywhere: all, in the models people have."""
    found = [
        (name, layer) for name, layer in unet.named_modules() if ".attentions." in name and type(layer) is nn.Linear
    ]
    fits = {name: layer.out_features % ROWS == 0 and layer.in_features % COLUMNS == 0 for name, layer in found}
    return [(name, layer) for name, layer in found if kind == "int8" or fits[name]]


def _quantized(layer: nn.Linear, kind, dtype) -> nn.Linear:
    import bitsandbytes as bnb

    size = {"input_features": layer.in_features, "output_features": layer.out_features, "bias": layer.bias is not None}
    if kind == "nf4":
        made = bnb.nn.Linear4bit(**size, compute_dtype=dtype, quant_type="nf4", device="meta")
        made.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4")
    else:
        made = bnb.nn.Linear8bitLt(**size, has_fp16_weights=False, threshold=6.0, device="meta")
        made.weight = bnb.nn.Int8Params(layer.weight.data, requires_grad=False, has_fp16_weights=False)
    made.bias = layer.bias
    # in training mode: in the other, bitsandbytes packs 4-bit weights on a CPU in a way that gives no gradients
    return made.requires_grad_(False).train()


def weight_bytes(unet, kind: str | None, dtype: torch.dtype) -> int:
    """What the weights of a UNet take on the device: counted by shapes, so a UNet without memory will do.

    Of nf4, a byte for two weights and one for the scale of 64, of int8 a byte for each and four for the scale of a row.
    """
    size, total = dtype.itemsize, sum(parameter.numel() for parameter in unet.parameters())
    layers = [layer.weight.shape for _, layer in _layers(unet, kind)] if kind else []
    weights = sum(rows * columns for rows, columns in layers)
    of_weight = {"nf4": 1 / 2 + 1 / 64, "int8": 1.0, None: size}[kind]
    scales = 4 * sum(rows for rows, _ in layers) if kind == "int8" else 0
    return round((total - weights) * size + weights * of_weight + scales)
