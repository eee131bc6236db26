"""Several hypernetworks that act as one: in sequence, or as the weighted mean of their outputs."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from hypernet.modeling.hypernetwork import Hypernetwork


class Composition(nn.Module):
    """Hypernetworks or compositions, in sequence or in parallel; can be attached like a hypernetwork.

    Args:
        name: for messages.
        parts: each with its strength.
        weights: for the mean of the parts' outputs, all computed from the same context. None: each part transforms
            the output of the one before it.
    """

    def __init__(
        self,
        name: str,
        parts: Sequence[tuple["Hypernetwork | Composition", float]],
        weights: Sequence[float] | None = None,
    ):
        super().__init__()
        self.name = name
        self.parts = nn.ModuleList(part for part, _ in parts)
        self.strengths = [strength for _, strength in parts]
        self.weights = None if weights is None else [weight / sum(weights) for weight in weights]

    def forward(
        self, context: torch.Tensor, strength: float = 1.0, context_v: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (context_k, context_v) as `Hypernetwork.forward` does; `strength` scales what the composition adds."""
        contexts = context, context if context_v is None else context_v  # (B, tokens, width) each
        results = self._mean(*contexts) if self.weights is not None else self._in_sequence(*contexts)
        if strength == 1:
            return results
        key, value = (x + strength * (result - x) for x, result in zip(contexts, results))
        return key, value

    def _in_sequence(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        for part, strength in zip(self.parts, self.strengths):
            key, value = part(key, strength, value)
        return key, value

    def _mean(self, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = [part(key, strength, value) for part, strength in zip(self.parts, self.strengths)]
        mean_k, mean_v = (
            sum(weight * each for weight, each in zip(self.weights or [], ends)) for ends in zip(*outputs)
        )
        return mean_k, mean_v

    def hypernetworks(self) -> Iterator[Hypernetwork]:
        """Yield the hypernetworks it is made of, each once."""
        yield from (module for module in self.modules() if isinstance(module, Hypernetwork))

    @property
    def device(self) -> torch.device:
        """The device of its weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        return next(self.parameters()).dtype

    def parameters_of_width(self, width: int) -> list[nn.Parameter]:
        """Return the parameters that transform contexts of this width."""
        return [weight for part in self.hypernetworks() for weight in part.parameters_of_width(width)]


Attachable = Hypernetwork | Composition
