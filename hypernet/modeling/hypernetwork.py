"""The hypernetwork: for each context width, one MLP for the keys and one for the values of an attention layer."""

from collections.abc import Callable, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import nn

from hypernet.modeling.structure import ACTIVATIONS, check_structure

WIDTHS_SD1 = (320, 640, 768, 1280)  # 768 is the text; 320, 640 and 1280 are self-attention


class HypernetworkModule(nn.Module):
    """One MLP, named and laid out as in the WebUI (modules/hypernetworks/hypernetwork.py).

    Structure (1, 2, 1) at width d is Linear(d, 2d), Linear(2d, d). Activation, LayerNorm and Dropout, where enabled,
    follow each Linear in this order. The last Linear has an activation only with `activate_output`.
    """

    def __init__(
        self,
        width: int,
        layer_structure: Sequence[float],
        activation: str,
        layer_norm: bool,
        activate_output: bool,
        dropout_structure: Sequence[float] | None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
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

    def forward(self, context: torch.Tensor) -> torch.Tensor:  # (B, tokens, width)
        return self.linear(context)  # (B, tokens, width); the caller adds it to the context, scaled

    @torch.no_grad()
    def init_weights(self, weight_init: str, activation: str, layer_norm_init: str) -> None:
        """Initialize the weights from torch's global generator; do nothing on the meta device.

        Every `weight_init` but "zero" follows the WebUI: "normal" is N(0, 0.01), Kaiming uses the gain of leaky_relu
        for leakyrelu and of relu for all others, and biases are 0. "zero" is Kaiming normal with the last Linear set to
        0, so that the hypernetwork starts as the identity. `layer_norm_init="normal"` is the WebUI's N(0, 0.01) for
        LayerNorm weights, which all but switches the module off; "ones" is PyTorch's default.
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
        linears = [layer for layer in self.linear if isinstance(layer, nn.Linear)]
        for layer in self.linear:
            if isinstance(layer, nn.Linear):
                initialize(layer.weight)
                nn.init.zeros_(layer.bias)
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


def constructor_arguments(config: dict) -> dict:
    """Return the constructor arguments in a config, without diffusers' own entries such as `_class_name`."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def is_linear(hypernetwork: Hypernetwork) -> bool:
    """Return whether all modules are linear maps once dropout is off: no activation and no LayerNorm."""
    return activation_class(hypernetwork.config.activation) is None and not hypernetwork.config.layer_norm


def is_autocast(tensor: torch.Tensor) -> bool:
    """Return whether autocast is on for the tensor's device; never for the meta device, which autocast rejects."""
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)
