"""The weighted mean of hypernetworks, weight by weight."""

import pytest

import hypernet
from hypernet.modeling.from_weights import without_dropout
from tests.helpers.tiny_models import trained_hypernetwork


def test_average_is_the_weighted_mean():
    one, other = trained_hypernetwork(1, dropout_structure=(0, 0.3, 0), step=5), trained_hypernetwork(2, step=9)
    mean = hypernet.average([one, other], [3, 1])
    assert mean.config.step == 9 and mean.config.dropout_structure is None
    states = without_dropout(one).state_dict(), other.state_dict()
    for name, tensor in mean.state_dict().items():
        assert (tensor - (0.75 * states[0][name] + 0.25 * states[1][name])).abs().max() < 1e-6


@pytest.mark.parametrize(
    "options, named",
    [
        ({"activation": "relu"}, "activation.*: linear, .*: relu"),
        ({"layer_structure": (1, 3, 1)}, "layer_structure"),
        ({"widths": (12, 16)}, "widths"),
        ({"skip_connection": "nearest"}, "skip_connection.*: None, .*: nearest"),
    ],
)
def test_different_structures_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        hypernet.average([trained_hypernetwork(), trained_hypernetwork(**options)], [1, 1])


@pytest.mark.parametrize("weights, named", [([1, -1], "0"), ([float("inf"), 1], "inf"), ([1e308, 1e308], "inf")])
def test_weights_without_a_positive_finite_sum_are_refused(weights, named):
    with pytest.raises(ValueError, match=f"weights.* {named};"):
        hypernet.average([trained_hypernetwork(1), trained_hypernetwork(2)], weights)
