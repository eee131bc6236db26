"""Plain re-computations of a hypernetwork, as references to compare with."""

import itertools

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
FORMULAS = {  # activation -> its formula with default arguments, as torch's documentation gives it
    "linear": lambda x: x,
    "celu": lambda x: x.clamp(min=0) + (x.exp() - 1).clamp(max=0),
    "elu": lambda x: torch.where(x > 0, x, x.exp() - 1),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
    "hardshrink": lambda x: torch.where(x.abs() > 0.5, x, 0.0),
    "hardsigmoid": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "hardswish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "hardtanh": lambda x: x.clamp(-1, 1),
    "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "logsigmoid": lambda x: -torch.log(1 + torch.exp(-x)),
    "mish": lambda x: x * torch.tanh(torch.log(1 + x.exp())),
    "relu": lambda x: x.clamp(min=0),
    "relu6": lambda x: x.clamp(0, 6),
    "rrelu": lambda x: torch.where(x >= 0, x, x * (1 / 8 + 1 / 3) / 2),
    "selu": lambda x: SELU_SCALE * torch.where(x > 0, x, SELU_ALPHA * (x.exp() - 1)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "softplus": lambda x: torch.log(1 + x.exp()),
    "softshrink": lambda x: x.sign() * (x.abs() - 0.5).clamp(min=0),
    "softsign": lambda x: x / (1 + x.abs()),
    "swish": lambda x: x * (x + 3).clamp(0, 6) / 6,
    "tanh": torch.tanh,
    "tanhshrink": lambda x: x - torch.tanh(x),
}


def plain_mlp(state_dict, x, structure, activation, layer_norm, activate_output, dropout):
    """Return a module's output from its state dict: Linear, activation, LayerNorm, in the WebUI's documented order.

    Dropouts do nothing here, but count in the layers' names.
    """
    position = 0
    for i in range(1, len(structure)):
        x = x @ state_dict[f"linear.{position}.weight"].T + state_dict[f"linear.{position}.bias"]
        position += 1
        if activation != "linear" and (i < len(structure) - 1 or activate_output):
            x = FORMULAS[activation](x)
            position += 1
        if layer_norm:
            centered = x - x.mean(-1, keepdim=True)
            x = centered / (centered.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            x = x * state_dict[f"linear.{position}.weight"] + state_dict[f"linear.{position}.bias"]
            position += 1
        if dropout is not None and dropout[i] > 0:
            position += 1
    assert position > max(int(name.split(".")[1]) for name in state_dict)
    return x


def extension_output(weights, x, strength=1.0, function=lambda x: x, layer_norm=False):
    """Return a context as the Hypernetwork-MonkeyPatch-Extension transforms it, from a residual module's state dict.

    Its layers add their input, resized or multiplied, to Linear, LayerNorm and activation; the result is interpolated
    between the context and the output of the last layer.
    """
    output = x
    for i in itertools.count():
        layer, skip = f"linear.{i}.linear", f"linear.{i}.upsample_layer.weight"
        if f"{layer}.0.weight" not in weights:
            return x + strength * (output - x)
        added = F.linear(output, weights[f"{layer}.0.weight"], weights[f"{layer}.0.bias"])
        if skip in weights:
            skipped = F.linear(output, weights[skip])
        else:
            skipped = F.interpolate(output, size=added.shape[-1], mode="nearest-exact")
        if layer_norm:
            added = F.layer_norm(added, added.shape[-1:], weights[f"{layer}.1.weight"], weights[f"{layer}.1.bias"])
        output = skipped + function(added)


def with_hooks(unet, stack):
    """Apply hypernetworks to an untouched UNet by forward hooks on every to_k and to_v: x -> x + s * mlp(x), in order.

    `stack` is a list of (hypernetwork, strength).
    """

    def hook(part):
        def replace(module, args):
            x = args[0]
            for hypernetwork, strength in stack:
                x = x + strength * hypernetwork.pairs[str(x.shape[-1])][part](x)
            return (x,)

        return replace

    for module in unet.modules():
        if isinstance(module, Attention):
            module.to_k.register_forward_pre_hook(hook("k"))
            module.to_v.register_forward_pre_hook(hook("v"))
    return unet
