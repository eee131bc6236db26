"""Build hypernetworks around given weights, and copy them without dropout."""

import pytest
import torch

from hypernet import Hypernetwork
from hypernet.modeling.from_weights import build_from_weights, without_dropout
from hypernet.modeling.hypernetwork import constructor_arguments
from tests.helpers.tiny_models import trained_hypernetwork


def test_weights_are_copied_to_float32_and_the_stored_dtype_is_kept():
    original = Hypernetwork((12,), weight_init="kaiming_normal", name="x", step=7).half()
    built = build_from_weights(constructor_arguments(original.config), original.state_dict())
    assert built.stored_dtype is torch.float16 and built.dtype is torch.float32 and not built.training
    assert built.config.step == 7 and built.config.name == "x"
    for ours, theirs in zip(built.state_dict().values(), original.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs.float()) and ours.data_ptr() != theirs.data_ptr()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"widths": [True]}, "widths"),
        ({"widths": [10**400]}, "structure"),  # too large for a float
        ({"layer_structure": [1, float("nan"), 1]}, "layer_structure"),
        ({"layer_structure": [1, 10**400, 1]}, "structure"),
        ({"step": -1}, "step"),
        ({"layer_norm": 1}, "layer_norm"),
        ({"activation": None}, "activation"),
        ({"unknown": "x"}, "unknown"),
        ({"skip_connection": "spline"}, "skip_connection"),
        ({"skip_connection": "nearest"}, "linear.0"),
        ({"layer_structure": [1, 3, 1]}, "linear.0"),
        ({"widths": [12, 16]}, "pairs.16"),
        ({"widths": [12, 16, 32]}, "8 tensors"),
    ],
)
def test_configs_that_do_not_fit_the_weights_are_refused(changes, named):
    hypernetwork = Hypernetwork((12,))
    config = {**constructor_arguments(hypernetwork.config), **changes}
    with pytest.raises(ValueError, match=named) as error:
        build_from_weights(config, hypernetwork.state_dict())
    assert "\n" not in str(error.value)


def test_without_dropout_computes_the_same():
    hypernetwork = trained_hypernetwork(activation="relu", layer_norm=True, dropout_structure=(0, 0.3, 0))
    plain, x = without_dropout(hypernetwork), torch.randn(3, 16)
    assert list(plain.pairs["16"]["k"].state_dict())[-2:] == ["linear.4.weight", "linear.4.bias"]
    assert list(hypernetwork.pairs["16"]["k"].state_dict())[-2:] == ["linear.5.weight", "linear.5.bias"]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(plain(x), hypernetwork(x)))
