"""The hypernetworks attached to one UNet, and the contexts they compute together."""

import dataclasses
import math
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from hypernet.modeling.composition import Attachable
from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import LinearMap, MapPlan, build_map, is_plain_linear, make_plan, tokens_per_layer

Contexts = tuple[torch.Tensor, torch.Tensor]  # of keys and of values, (B, tokens, width) each
Maps = dict[int, tuple[LinearMap, LinearMap]]  # context width -> the maps of keys and values


@dataclasses.dataclass
class HypernetworkStack:
    """The hypernetworks attached to one UNet, in order, each with its strength.

    Attributes:
        attention: the UNet's attention layers by name.
        use_linear_maps: whether a linear hypernetwork may run as a `LinearMap` instead of module by module.
        plans: plans by context width, for each combination of shapes seen so far.
        undo: functions that remove the stack from the UNet.
        cached_text: the last forward's text, its other inputs, and the contexts computed from them.
    """

    layers: list[tuple[Attachable, float]] = dataclasses.field(default_factory=list)
    attention: dict[str, Attention] = dataclasses.field(default_factory=dict)
    use_linear_maps: bool = True
    plans: dict[tuple, dict[int, MapPlan]] = dataclasses.field(default_factory=dict)
    undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    cached_text: tuple[torch.Tensor, torch.Tensor, list, Contexts] | None = None

    @property
    def active(self) -> bool:
        """Whether any strength is not 0."""
        return any(strength != 0 for _, strength in self.layers)

    def __call__(self, context: torch.Tensor) -> Contexts:  # (B, tokens, width)
        """Return the contexts of keys and values. Each hypernetwork transforms the previous one's output."""
        context_k = context_v = context
        for hypernetwork, strength in self.layers:
            if strength == 0:
                continue
            if hypernetwork.device != context.device:
                hypernetwork.to(context.device)
            context_k, context_v = hypernetwork(context_k, strength, context_v)
        return context_k, context_v

    def transform_text(self, text: torch.Tensor, maps: Maps) -> Contexts:  # (B, tokens, width)
        """Return the text's contexts of keys and values, computed once for all steps of an image.

        Compares text and weights by value (the weights by their sums and norms), since in-place writes can leave no
        trace. Caches nothing while gradients are recorded, in training mode, or in compiled code, which keeps no state
        between calls.
        """
        training = any(hypernetwork.training for hypernetwork, _ in self.layers)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or training:
            return self._transform_text(text, maps)
        sums, settings = self._weight_sums(text), self._settings(text)
        if self.cached_text is not None:
            old_text, old_sums, old_settings, contexts = self.cached_text
            if settings == old_settings and torch.equal(old_text, text) and torch.equal(old_sums, sums):
                return contexts
        contexts = self._transform_text(text, maps)
        self.cached_text = text.clone(), sums, settings, contexts
        return contexts

    def _transform_text(self, text: torch.Tensor, maps: Maps) -> Contexts:
        if text.shape[-1] in maps:
            map_k, map_v = maps[text.shape[-1]]
            return map_k.transform(text), map_v.transform(text)
        return self(text)

    def _weight_sums(self, text: torch.Tensor) -> torch.Tensor:
        """Return sum and norm of every weight that transforms the text, (2 * weights,)."""
        weights = [weight for layer, _ in self.layers for weight in layer.parameters_of_width(text.shape[-1])]
        reductions = (torch.sum, torch.linalg.vector_norm)
        sums = [reduce(weight, dtype=torch.float32).to(text.device) for weight in weights for reduce in reductions]
        return torch.stack(sums) if sums else text.new_zeros(0)

    def _settings(self, text: torch.Tensor) -> list:
        """Return everything the text's contexts depend on except the text and the weights."""
        kind = text.device.type
        autocast = [torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)]
        return [
            *[(id(layer), layer.dtype, strength) for layer, strength in self.layers],
            *autocast,
            text.dtype,
            text.device,
        ]

    def build_maps(self, unet: nn.Module, latents: torch.Tensor, text: torch.Tensor | None) -> Maps:
        """Return the maps of one forward for the widths where maps cost less than the modules themselves.

        Empty unless exactly one hypernetwork is active, it is linear, its dropout is off, and the latents are images.

        Args:
            unet: the UNet, for its layers and levels.
            latents: (B, channels, height, width).
            text: (B, tokens, width).
        """
        active = [(hypernetwork, strength) for hypernetwork, strength in self.layers if strength != 0]
        if text is None or latents.ndim != 4 or not self.use_linear_maps or len(active) != 1:
            return {}
        [(hypernetwork, strength)] = active
        if not isinstance(hypernetwork, Hypernetwork):
            return {}
        drops = hypernetwork.training and any(hypernetwork.config.dropout_structure or ())
        if drops or not is_linear(hypernetwork):
            return {}
        if hypernetwork.device != latents.device:
            hypernetwork.to(latents.device)
        maps = {}
        for width, plan in self._plans(unet, hypernetwork, latents, text).items():
            if plan.use_map:
                pair = hypernetwork.pairs[str(width)]
                map_k = build_map(pair["k"], strength, plan.fuse_from)
                maps[width] = map_k, build_map(pair["v"], strength, plan.fuse_from)
        return maps

    def _plans(
        self, unet: nn.Module, hypernetwork: Hypernetwork, latents: torch.Tensor, text: torch.Tensor
    ) -> dict[int, MapPlan]:
        training = torch.is_grad_enabled() and any(weight.requires_grad for weight in hypernetwork.parameters())
        if torch.compiler.is_compiling():
            # not cached: a graph that reads a dict is compiled again whenever the dict has grown
            return self._make_plans(unet, hypernetwork, latents, text, training)
        structure, pairs = tuple(hypernetwork.config.layer_structure), tuple(hypernetwork.pairs)
        key = (structure, pairs, tuple(latents.shape), tuple(text.shape), training)
        if key not in self.plans:
            self.plans[key] = self._make_plans(unet, hypernetwork, latents, text, training)
        return self.plans[key]

    def _make_plans(
        self, unet: nn.Module, hypernetwork: Hypernetwork, latents: torch.Tensor, text: torch.Tensor, training: bool
    ) -> dict[int, MapPlan]:
        levels = len(unet.config.block_out_channels)
        tokens = tokens_per_layer(self.attention, levels, latents.shape[0], *latents.shape[2:])
        layers: dict[int, list[tuple[int, float]]] = {text.shape[-1]: [(text.shape[0] * text.shape[1], math.inf)]}
        for name, layer in self.attention.items():
            if not layer.is_cross_attention:
                out = layer.to_k.out_features if is_plain_linear(layer.to_k) else math.inf  # inf: never fuse
                layers.setdefault(layer.to_k.in_features, []).append((tokens[name], out))
        structure = tuple(hypernetwork.config.layer_structure)
        widths = [width for width in layers if hypernetwork.parameters_of_width(width)]
        return {width: make_plan(structure, width, layers[width], training) for width in widths}
