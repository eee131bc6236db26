"""What is attached to one UNet: hypernetworks in order, and the K and V contexts that they make together."""

import dataclasses
import math
from collections.abc import Callable

import torch
from diffusers.models.attention_processor import Attention

from hypernet.modeling.hypernetwork import Hypernetwork, is_linear
from hypernet.modeling.linear_map import LinearMap, MapPlan, build_map, is_plain_linear, make_plan, tokens_per_layer


@dataclasses.dataclass
class HypernetworkStack:
    """What is attached to one UNet: hypernetworks in order with their strengths, and how to undo it."""

    layers: list[tuple[Hypernetwork, float]] = dataclasses.field(default_factory=list)
    attention: dict[str, Attention] = dataclasses.field(default_factory=dict)  # the UNet's layers by name
    folding: bool = True  # False: linear hypernetworks compute as the others do
    plans: dict[tuple, dict[int, MapPlan]] = dataclasses.field(default_factory=dict)  # by the shapes of a forward
    undo: list[Callable[[], None]] = dataclasses.field(default_factory=list)
    kept: tuple | None = None  # the last forward's text, what else shapes its K and V context, and these

    @property
    def active(self) -> bool:
        return any(strength != 0 for _, strength in self.layers)

    def __call__(self, context):  # (B, tokens, width)
        """K and V context; each hypernetwork gets the previous one's output, K and V each on their own."""
        context_k = context_v = context
        for hypernetwork, strength in self.layers:
            if strength == 0:
                continue
            if hypernetwork.device != context.device:
                hypernetwork.to(context.device)
            context_k, context_v = hypernetwork(context_k, strength, context_v)
        return context_k, context_v

    def transform_text(self, text, maps):  # (B, tokens, width)
        """K and V context of a forward's text, which stays the same over the steps of an image: made once, then kept.

        Text and weights are compared by value (the weights by their sums and norms), for they may be written to in ways
        that leave no trace. Not where gradients are wanted or dropout is at work; nor in compiled code, which keeps
        nothing between its calls.
        """
        training = any(hypernetwork.training for hypernetwork, _ in self.layers)
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or training:
            return self._transform_text(text, maps)
        device, weights = text.device, [w for layer, _ in self.layers for w in layer.parameters_of_width(text.shape[-1])]
        sums = [f(w, dtype=torch.float32).to(device) for w in weights for f in (torch.sum, torch.linalg.vector_norm)]
        sums = torch.stack(sums) if sums else text.new_zeros(0)
        settings = [(id(layer), layer.dtype, strength) for layer, strength in self.layers]
        settings += [torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type), text.dtype, device]
        if self.kept is not None:
            old_text, old_sums, old_settings, contexts = self.kept
            if settings == old_settings and torch.equal(old_text, text) and torch.equal(old_sums, sums):
                return contexts
        self.kept = text.clone(), sums, settings, self._transform_text(text, maps)
        return self.kept[-1]

    def _transform_text(self, text, maps):
        if text.shape[-1] in maps:
            return tuple(part.transform(text) for part in maps[text.shape[-1]])
        return self(text)

    def build_maps(self, unet, latents, text) -> dict[int, tuple[LinearMap, LinearMap]]:
        """Width -> the maps of K and V, for this forward, where these are less work than the modules themselves.

        For one linear hypernetwork alone, on a UNet for pictures, and not where its dropout is at work.
        """
        if text is None or latents.ndim != 4:
            return {}
        active = [(hypernetwork, strength) for hypernetwork, strength in self.layers if strength != 0]
        if not self.folding or len(active) != 1 or not is_linear(active[0][0]):
            return {}
        hypernetwork, strength = active[0]
        if hypernetwork.training and any(hypernetwork.config.dropout_structure or ()):
            return {}
        if hypernetwork.device != latents.device:
            hypernetwork.to(latents.device)
        maps = {}
        for width, plan in self._plans(unet, hypernetwork, latents, text).items():
            if plan.build:
                pair = hypernetwork.pairs[str(width)]
                maps[width] = tuple(build_map(pair[part], strength, plan.fuse_from) for part in ("k", "v"))
        return maps

    def _plans(self, unet, hypernetwork, latents, text) -> dict[int, MapPlan]:
        training = torch.is_grad_enabled() and any(weight.requires_grad for weight in hypernetwork.parameters())
        if torch.compiler.is_compiling():
            # once for each shape; a graph that looks into a growing dict is compiled anew when it has grown
            return self._make_plans(unet, hypernetwork, latents, text, training)
        structure, pairs = tuple(hypernetwork.config.layer_structure), tuple(hypernetwork.pairs)
        key = (structure, pairs, tuple(latents.shape), tuple(text.shape), training)
        if key not in self.plans:
            self.plans[key] = self._make_plans(unet, hypernetwork, latents, text, training)
        return self.plans[key]

    def _make_plans(self, unet, hypernetwork, latents, text, training):
        tokens = tokens_per_layer(unet, latents.shape[0], *latents.shape[2:])
        layers = {text.shape[-1]: [(text.shape[0] * text.shape[1], math.inf)]}
        for name, layer in self.attention.items():
            if not layer.is_cross_attention:
                width = layer.to_k.out_features if is_plain_linear(layer.to_k) else math.inf  # into others nothing is folded
                layers.setdefault(layer.to_k.in_features, []).append((tokens[name], width))
        structure = tuple(hypernetwork.config.layer_structure)
        widths = [width for width in layers if hypernetwork.parameters_of_width(width)]
        return {width: make_plan(structure, width, layers[width], training) for width in widths}
