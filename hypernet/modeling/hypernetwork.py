"""The hypernetwork: for each context width a pair of MLPs, one for an attention layer's keys and one for its values."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hypernet.modeling.structure import ACTIVATIONS, check_structure

WIDTHS_SD1 = (320, 640, 768, 1280)


def activation_class(name: str) -> type[nn.Module] | None:
    """Return the module class of an activation by its name in `ACTIVATIONS`; None for "linear"."""
    class_name = ACTIVATIONS[name]
    return None if class_name is None else getattr(nn, class_name)


def is_autocast(tensor) -> bool:
    """Whether products with it are cast now; never on the meta device, of which autocast knows nothing."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


class HypernetworkModule(nn.Module):
    """One MLP, `linear`, of the WebUI's layout: after each Linear the activation, the LayerNorm and the Dropout it has.

    For the structure (1, 2, 1) and width d it holds Linear(d, 2d) and Linear(2d, d). The activation does not follow
    the last Linear unless `activate_output`; the LayerNorm, if asked for, follows every Linear.
    """

    def __init__(self, width, layer_structure, activation, layer_norm, activate_output, dropout_structure):
        super().__init__()
        layers = []
        for i, (before, after) in enumerate(zip(layer_structure, layer_structure[1:])):
            last = i == len(layer_structure) - 2
            layers.append(nn.Linear(int(width * before), int(width * after)))
            activation_layer = activation_class(activation)
            if activation_layer is not None and (activate_output or not last):
                layers.append(activation_layer())
            if layer_norm:
                layers.append(nn.LayerNorm(int(width * after)))
            if dropout_structure is not None and dropout_structure[i + 1] > 0:
                layers.append(nn.Dropout(dropout_structure[i + 1]))
        self.linear = nn.Sequential(*layers)

    def forward(self, context):  # (B, tokens, width)
        return self.linear(context)  # (B, tokens, width), to be scaled by the strength and added to the context

    @torch.no_grad()
    def init_weights(self, weight_init, activation, layer_norm_init):
        """Draw the weights from torch's global generator.

        The five named after the WebUI's draw as it does: normal is N(0, 0.01), Kaiming takes the gain of leaky_relu
        for leakyrelu and of relu otherwise, biases are 0. `zero` draws Kaiming normal weights but sets the last
        Linear to 0, so that the module starts as the identity. `layer_norm_init="normal"` is the WebUI's start of
        the LayerNorm weights, N(0, 0.01), which all but switches the module off; "ones" is PyTorch's. Where there is no
        memory for weights (PyTorch's meta device), none are drawn.
        """
        if next(self.parameters()).is_meta:
            return
        nonlinearity = "leaky_relu" if activation == "leakyrelu" else "relu"
        draw = {
            "normal": lambda weight: nn.init.normal_(weight, mean=0.0, std=0.01),
            "xavier_uniform": nn.init.xavier_uniform_,
            "xavier_normal": nn.init.xavier_normal_,
            "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity=nonlinearity),
            "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity=nonlinearity),
        }
        draw["zero"] = draw["kaiming_normal"]
        linears = [layer for layer in self.linear if isinstance(layer, nn.Linear)]
        for layer in self.linear:
            if isinstance(layer, nn.Linear):
                draw[weight_init](layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, nn.LayerNorm) and layer_norm_init == "normal":
                nn.init.normal_(layer.weight, mean=0.0, std=0.01)
        if weight_init == "zero":
            nn.init.zeros_(linears[-1].weight)


class Hypernetwork(ModelMixin, ConfigMixin):
    """Pairs of `HypernetworkModule`s by context width: they make K and V context of an attention layer's context.

    Args:
        widths: context widths to transform, for SD 1.x any of 320, 640, 1280 (self-attention) and 768 (text).
        layer_structure: multiples of the width, first and last 1.
        activation: name from `ACTIVATIONS`, "linear" for none.
        weight_init: name from `WEIGHT_INITS`.
        layer_norm: a LayerNorm after every Linear.
        layer_norm_init: "ones", or "normal" for the WebUI's start.
        activate_output: the activation after the last Linear, too.
        dropout_structure: dropout probabilities, one per entry of `layer_structure`, first and last 0.
        name: what the file is called in prompts.
        step: optimizer updates it was trained for.
        base_model_name, base_model_hash: what it was trained on.
        optional_info: the WebUI's note of how it was trained.

    Raises:
        ValueError: for a structure, activation, initialisation or dropout that does not exist.
    """

    @register_to_config
    def __init__(
        self,
        widths: tuple[int, ...] = WIDTHS_SD1,
        layer_structure: tuple[float, ...] = (1, 2, 1),
        activation: str = "linear",
        weight_init: str = "normal",
        layer_norm: bool = False,
        layer_norm_init: str = "ones",
        activate_output: bool = False,
        dropout_structure: tuple[float, ...] | None = None,
        name: str = "hypernetwork",
        step: int = 0,
        base_model_name: str | None = None,
        base_model_hash: str | None = None,
        optional_info: str | None = None,
    ):
        super().__init__()
        check_structure(
            layer_structure, activation, weight_init, layer_norm, layer_norm_init, activate_output, dropout_structure
        )
        self.pairs = nn.ModuleDict()
        for width in widths:
            pair = {}
            for part in ("k", "v"):
                pair[part] = HypernetworkModule(
                    width, layer_structure, activation, layer_norm, activate_output, dropout_structure
                )
                pair[part].init_weights(weight_init, activation, layer_norm_init)
            self.pairs[str(width)] = nn.ModuleDict(pair)

    def forward(self, context, strength=1.0, context_v=None):  # (B, tokens, width)
        """(context_k, context_v): `context + strength * mlp(context)` of each, shaped like the context.

        `context_v`, if given, is what V is made from: where hypernetworks are stacked, the previous one's V context.
        A context whose width has no pair here passes through. Outside autocast the MLPs run in their own precision
        and the results come in the context's.
        """
        context_v = context if context_v is None else context_v
        width = str(context.shape[-1])
        if width not in self.pairs:
            return context, context_v
        autocast = is_autocast(context)

        def transform(part, x):
            change = self.pairs[width][part](x if autocast else x.to(self.dtype))
            return x + strength * change.to(x.dtype)

        return transform("k", context), transform("v", context_v)

    def parameters_of_width(self, width: int) -> list[nn.Parameter]:
        """The parameters that transform contexts of this width, none if it has not the width."""
        return list(self.pairs[str(width)].parameters()) if str(width) in self.pairs else []


def constructor_arguments(config: dict) -> dict:
    """What `Hypernetwork` is built with, of its config or a config.json; `_class_name` and the like are diffusers' own."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def check_types(config: dict):
    """Raise ValueError, in one line, if an argument of `Hypernetwork` that a file gives is not of its type."""
    words = ("activation", "weight_init", "layer_norm_init", "name")
    for key, value in config.items():
        if key == "widths":
            right = _numbers(value, int) and len(set(value)) == len(value) > 0 and min(value) > 0
        elif key == "layer_structure" or key == "dropout_structure" and value is not None:
            right = _numbers(value, int, float)
        elif key in ("layer_norm", "activate_output"):
            right = type(value) is bool
        elif key == "step":
            right = type(value) is int and 0 <= value < 1 << 63
        else:
            right = type(value) is str or value is None and key not in words
        if not right:
            raise ValueError(f"{str(key)[:40]!r} is not what it must be")


def _numbers(value, *kinds):
    return type(value) in (list, tuple) and all(type(number) in kinds and math.isfinite(number) for number in value)


def build(config: dict, weights: dict[str, torch.Tensor]) -> Hypernetwork:
    """The hypernetwork of a file: its declared structure with its weights, in float32 and evaluation mode.

    Memory is only taken for weights that are there, whatever sizes are declared; no random number is drawn. Its
    `stored_dtype` is that of the weights given, float32 if they have several.

    Args:
        config: constructor arguments of `Hypernetwork`.
        weights: tensors by the names of its state dict.

    Raises:
        ValueError: in one line, if there is no such structure or the weights are not those of it.
    """
    check_types(config)
    widths, structure = config.get("widths", WIDTHS_SD1), config.get("layer_structure", (1, 2, 1))
    try:
        if len(widths) * 2 * (len(structure) - 1) > len(weights):
            raise ValueError(f"{len(weights)} tensors are too few for its structure")
        with torch.device("meta"):
            hypernetwork = Hypernetwork(**config)
    except (TypeError, OverflowError, RuntimeError, KeyError) as error:
        raise ValueError(f"its structure cannot be built ({' '.join(str(error).split())[:200]})") from None
    expected = {name: tuple(tensor.shape) for name, tensor in hypernetwork.state_dict().items()}
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{name} is {'missing' if name in expected else 'one too many'} for its structure")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(f"{name} has the shape {list(weights[name].shape)}, its structure says {list(shape)}")
    plain = {name: tensor.to(torch.float32, copy=True).contiguous() for name, tensor in weights.items()}
    hypernetwork.load_state_dict(plain, assign=True)
    dtypes = {tensor.dtype for tensor in weights.values()}
    hypernetwork.stored_dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
    return hypernetwork.eval()


def is_linear(hypernetwork: Hypernetwork) -> bool:
    """Whether all its modules are linear maps while drawing, when dropout is off: no activation and no LayerNorm."""
    return activation_class(hypernetwork.config.activation) is None and not hypernetwork.config.layer_norm


def without_dropout(hypernetwork: Hypernetwork) -> Hypernetwork:
    """A copy for drawing: the same weights without the Dropout layers, so that the others are numbered anew."""
    config = constructor_arguments(hypernetwork.config)
    with torch.device("meta"):
        names = list(Hypernetwork(**{**config, "dropout_structure": None}).state_dict())
    return build({**config, "dropout_structure": None}, dict(zip(names, hypernetwork.state_dict().values())))
