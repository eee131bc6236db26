"""Average several hypernetworks into one."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hypernet.modeling.from_weights import without_dropout
from hypernet.modeling.hypernetwork import Hypernetwork


@torch.no_grad()
def average(hypernetworks: Sequence[Hypernetwork], weights: Sequence[float]) -> Hypernetwork:
    """Return the weighted mean of hypernetworks of the same structure; `weights` are scaled to sum to 1.

    The result has no dropout; its step count is the largest of theirs. Everything else comes from the first.

    Raises:
        ValueError: if the structures differ (then only stacking works), or the weights do not sum to a number above 0.
    """
    total = sum(weights)
    if not (total > 0 and all(math.isfinite(weight) for weight in (*weights, total))):
        raise ValueError(f"the weights sum to {total:g}; they must be finite and sum to more than 0")
    first = _structure(hypernetworks[0])
    for hypernetwork in hypernetworks[1:]:
        other = _structure(hypernetwork)
        for key in first:
            if first[key] != other[key]:
                names = f"{hypernetworks[0].config.name}: {first[key]}, {hypernetwork.config.name}: {other[key]}"
                raise ValueError(f"hypernetworks that differ in {key} ({names}) cannot be averaged; stack them instead")
    states = [without_dropout(hypernetwork).state_dict() for hypernetwork in hypernetworks]
    result = without_dropout(hypernetworks[0])
    for name, mean in result.state_dict().items():
        mean.copy_(sum(weight / total * state[name].double() for weight, state in zip(weights, states)))
    result.register_to_config(step=max(hypernetwork.config.step for hypernetwork in hypernetworks))
    return result


def _structure(hypernetwork: Hypernetwork) -> dict[str, Any]:
    """Return the options that must be equal for weights to be averaged."""
    config = hypernetwork.config
    return {
        "widths": sorted(config.widths),
        "layer_structure": [float(multiple) for multiple in config.layer_structure],
        **{key: config[key] for key in ("activation", "layer_norm", "activate_output", "skip_connection")},
    }
