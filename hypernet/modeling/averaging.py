"""The weighted mean of several hypernetworks."""

import math

import torch

from hypernet.modeling.hypernetwork import Hypernetwork, without_dropout


@torch.no_grad()
def average(hypernetworks: list[Hypernetwork], weights: list[float]) -> Hypernetwork:
    """The weighted mean of the weights of hypernetworks of one structure; `weights` are scaled to a sum of 1.

    It has no dropout, the most steps of them, and everything else from the first.

    Raises:
        ValueError: if their structures differ (then only stacking them works), or the sum is not a number above 0.
    """
    total = sum(weights)
    if not (total > 0 and all(math.isfinite(weight) for weight in (*weights, total))):
        raise ValueError(f"the weights sum up to {total:g}; it must be more than 0, and all must be numbers")
    first = _structure(hypernetworks[0])
    for hypernetwork in hypernetworks[1:]:
        other = _structure(hypernetwork)
        for key in first:
            if first[key] != other[key]:
                names = f"{hypernetworks[0].config.name}: {first[key]}, {hypernetwork.config.name}: {other[key]}"
                raise ValueError(f"their {key} differs ({names}), so they cannot be averaged; stack them instead")
    plain = [without_dropout(hypernetwork).state_dict() for hypernetwork in hypernetworks]
    result = without_dropout(hypernetworks[0])
    for name, mean in result.state_dict().items():
        mean.copy_(sum(weight / total * state[name].double() for weight, state in zip(weights, plain)))
    result.register_to_config(step=max(hypernetwork.config.step for hypernetwork in hypernetworks))
    return result


def _structure(hypernetwork):
    config = hypernetwork.config
    return {
        "widths": sorted(config.widths),
        "layer_structure": [float(multiple) for multiple in config.layer_structure],
        **{key: config[key] for key in ("activation", "layer_norm", "activate_output")},
    }
