"""The hypernetwork: for each context width, one MLP for the keys and one for the values of an attention layer."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hypernet.modeling.structure import ACTIVATIONS, check_structure

WIDTHS_SD1 = (320, 640, 768, 1280)  # 768 is the text; 320, 640 and 1280 are self-attention


class ResidualLayer(nn.Module):
    """A layer that adds its input to its output: x -> skip(x) + linear(x), skip being one of `SKIP_CONNECTIONS`.

    Named and laid out as `ResBlock` of the WebUI's Hypernetwork-MonkeyPatch-Extension (patches/hypernetwork.py):
    Linear, LayerNorm, Dropout and activation in this order, the activation in the last layer too.
    """

    def __init__(
        self, before: int, after: int, activation: str, layer_norm: bool, dropout: float, skip_connection: str
    ):
        super().__init__()
        self.width = after
        self.upsample_layer = nn.Linear(before, after, bias=False) if skip_connection == "linear" else None
        layers: list[nn.Module] = [nn.Linear(before, after)]
        layers += [nn.LayerNorm(after)] if layer_norm else []
        layers += [nn.Dropout(dropout)] if dropout > 0 else []
        activation_layer = activation_class(activation)
        layers += [activation_layer()] if activation_layer is not None else []
        self.linear = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (..., before)
        skipped = resize(x, self.width) if self.upsample_layer is None else self.upsample_layer(x)
        return skipped + self.linear(x)  # (..., after)

    def skip_matrix(self) -> torch.Tensor:
        """Return the matrix that the skip connection multiplies its input by, (after, before)."""
        if self.upsample_layer is not None:
            return self.upsample_layer.weight
        weight = self.linear[0].weight
        return resize(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device), self.width).T


class HypernetworkModule(nn.Module):
    """One MLP, named and laid out as in the WebUI (modules/hypernetworks/hypernetwork.py).

    Structure (1, 2, 1) at width d is Linear(d, 2d), Linear(2d, d). Activation, LayerNorm and Dropout, where enabled,
    follow each Linear in this order. The last Linear has an activation only with `activate_output`. With a
    `skip_connection` each layer is a `ResidualLayer`.
    """

    def __init__(
        self,
        width: int,
        layer_structure: Sequence[float],
        activation: str,
        layer_norm: bool,
        activate_output: bool,
        dropout_structure: Sequence[float] | None,
        skip_connection: str | None = None,
    ):
        super().__init__()
        self.is_residual = skip_connection is not None
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(zip(layer_structure, layer_structure[1:])):
            last = i == len(layer_structure) - 2
            dropout = 0.0 if dropout_structure is None else dropout_structure[i + 1]
            if skip_connection is not None:
                sizes = int(width * before), int(width * after)
                layers.append(ResidualLayer(*sizes, activation, layer_norm, dropout, skip_connection))
                continue
            layers.append(nn.Linear(int(width * before), int(width * after)))
            activation_layer = activation_class(activation)
            if activation_layer is not None and (activate_output or not last):
                layers.append(activation_layer())
            if layer_norm:
                layers.append(nn.LayerNorm(int(width * after)))
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        self.linear = nn.Sequential(*layers)

    def forward(self, context: torch.Tensor) -> torch.Tensor:  # (B, tokens, width)
        result = self.linear(context)
        return result - context if self.is_residual else result  # (B, tokens, width); the caller adds it, scaled

    @torch.no_grad()
    def init_weights(self, weight_init: str, activation: str, layer_norm_init: str) -> None:
        """Initialize the weights from torch's global generator; do nothing on the meta device.

        Every `weight_init` but "zero" follows the WebUI: "normal" is N(0, 0.01), Kaiming uses the gain of leaky_relu
        for leakyrelu and of relu for all others, and biases are 0. "zero" is Kaiming normal with the last Linear set to
        0, so that the hypernetwork starts as the identity. `layer_norm_init="normal"` is the WebUI's N(0, 0.01) for
        LayerNorm weights, which all but switches the module off; "ones" is PyTorch's default. Skip connections with
        weights start out equal to "nearest" ones.
        """
        if next(self.parameters()).is_meta:
            return
        nonlinearity = "leaky_relu" if activation == "leakyrelu" else "relu"
        initializers: dict[str, Callable[[torch.Tensor], object]] = {
            "normal": lambda weight: nn.init.normal_(weight, mean=0.0, std=0.01),
            "xavier_uniform": nn.init.xavier_uniform_,
            "xavier_normal": nn.init.xavier_normal_,
            "kaiming_uniform": lambda weight: nn.init.kaiming_uniform_(weight, nonlinearity=nonlinearity),
            "kaiming_normal": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity=nonlinearity),
        }
        initialize = initializers["kaiming_normal" if weight_init == "zero" else weight_init]
        linears = [layer for layer in self.modules() if isinstance(layer, nn.Linear) and layer.bias is not None]
        for layer in self.modules():
            if isinstance(layer, nn.Linear) and layer.bias is not None:
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)
            elif isinstance(layer, ResidualLayer) and layer.upsample_layer is not None:
                before = layer.upsample_layer.in_features
                layer.upsample_layer.weight.copy_(resize(torch.eye(before), layer.width).T)
            elif isinstance(layer, nn.LayerNorm) and layer_norm_init == "normal":
                nn.init.normal_(layer.weight, mean=0.0, std=0.01)
        if weight_init == "zero":
            nn.init.zeros_(linears[-1].weight)


class Hypernetwork(ModelMixin, ConfigMixin):
    """One pair of `HypernetworkModule`s per context width: one transforms the context of the keys, one of the values.

    Args:
        widths: context widths to transform; see `WIDTHS_SD1`.
        layer_structure: layer widths as multiples of the context width; the first and last are 1.
        activation: a key of `ACTIVATIONS`; "linear" for none.
        weight_init: one of `WEIGHT_INITS`.
        layer_norm: whether a LayerNorm follows every Linear.
        layer_norm_init: "ones", or "normal" for the WebUI's initialization.
        activate_output: whether the activation follows the last Linear too.
        dropout_structure: a dropout probability per entry of `layer_structure`. The first is never used: there is no
            dropout before the first Linear.
        name: the name used in prompts and file names.
        step: number of optimizer updates it has been trained for.
        base_model_name: name of the base model it was trained on.
        base_model_hash: hash of that base model.
        optional_info: the WebUI's free-text note on the training.
        skip_connection: None, or one of `SKIP_CONNECTIONS` for layers that add their input to their output. Only the
            WebUI's Hypernetwork-MonkeyPatch-Extension has them.

    Attributes:
        stored_dtype: the precision of the file it was loaded from; unset otherwise. The weights are float32.

    Raises:
        ValueError: for an unknown or impossible structure, activation, initialization or dropout.
    """

    stored_dtype: torch.dtype

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
        skip_connection: str | None = None,
    ):
        super().__init__()
        check_structure(
            layer_structure,
            activation,
            weight_init,
            layer_norm,
            layer_norm_init,
            activate_output,
            dropout_structure,
            skip_connection,
        )
        self.pairs = nn.ModuleDict()
        for width in widths:
            pair = {}
            for part in ("k", "v"):
                pair[part] = HypernetworkModule(
                    width, layer_structure, activation, layer_norm, activate_output, dropout_structure, skip_connection
                )
                pair[part].init_weights(weight_init, activation, layer_norm_init)
            self.pairs[str(width)] = nn.ModuleDict(pair)

    def forward(
        self, context: torch.Tensor, strength: float = 1.0, context_v: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (context_k, context_v), each `x + strength * mlp(x)`, in the shape and precision of `context`.

        A width without a pair passes through unchanged. Outside autocast the MLPs run in their own precision.

        Args:
            context: (B, tokens, width).
            strength: scales what the MLPs add.
            context_v: (B, tokens, width), the context of the values, which in a stack can differ from that of the keys.
                Default: `context`.
        """
        context_v = context if context_v is None else context_v
        width = str(context.shape[-1])
        if width not in self.pairs:
            return context, context_v
        pair, autocast = self.pairs[width], is_autocast(context)

        def transform(mlp: HypernetworkModule, x: torch.Tensor) -> torch.Tensor:
            added = mlp(x if autocast else x.to(self.dtype))  # (B, tokens, width)
            return x + strength * added.to(x.dtype)

        return transform(pair["k"], context), transform(pair["v"], context_v)  # (B, tokens, width) each

    def parameters_of_width(self, width: int) -> list[nn.Parameter]:
        """Return the parameters that transform contexts of this width; an empty list if there is no such pair."""
        return list(self.pairs[str(width)].parameters()) if str(width) in self.pairs else []


def activation_class(name: str) -> type[nn.Module] | None:
    """Return the class of an activation by its name in `ACTIVATIONS`; None for "linear"."""
    class_name = ACTIVATIONS[name]
    return None if class_name is None else getattr(nn, class_name)


def resize(x: torch.Tensor, width: int) -> torch.Tensor:
    """Return x with its last dimension resized to `width` by repeating or leaving out values.

    It picks the values that `torch.nn.functional.interpolate` does with mode "nearest-exact".
    """
    if x.shape[-1] == width:
        return x
    return F.interpolate(x.reshape(1, -1, x.shape[-1]), width, mode="nearest-exact").reshape(*x.shape[:-1], width)


def constructor_arguments(config: dict) -> dict:
    """Return the constructor arguments in a config, without diffusers' own entries such as `_class_name`."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def is_linear(hypernetwork: Hypernetwork) -> bool:
    """Return whether all modules are linear maps once dropout is off: no activation and no LayerNorm."""
    return activation_class(hypernetwork.config.activation) is None and not hypernetwork.config.layer_norm


def is_autocast(tensor: torch.Tensor) -> bool:
    """Return whether autocast is on for the tensor's device; never for the meta device, which autocast rejects."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)
