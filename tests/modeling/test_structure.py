"""The names and rules of a hypernetwork's structure, which are written without torch, against torch."""

import inspect

import pytest
import torch
from torch import nn

from hypernet.modeling.hypernetwork import activation_class
from hypernet.modeling.structure import ACTIVATIONS, NONZERO_AT_ZERO, check_structure

# Modules of torch.nn.modules.activation that do not map (B, tokens, width) to itself without arguments
NOT_ACTIVATIONS = {"GLU", "MultiheadAttention", "Softmax2d", "Threshold"}


def test_activations_are_those_of_torch():
    module = nn.modules.activation
    names = {name for name, cls in inspect.getmembers(module, inspect.isclass) if cls.__module__ == module.__name__}
    expected = {name.lower(): getattr(nn, name) for name in names - NOT_ACTIVATIONS}
    expected |= {"swish": nn.Hardswish, "linear": None}
    assert {name: activation_class(name) for name in ACTIVATIONS} == expected


def test_activations_that_are_not_zero_at_zero():
    classes = {name: cls for name in ACTIVATIONS if (cls := activation_class(name)) is not None}
    with torch.no_grad():
        nonzero = {name for name, cls in classes.items() if cls()(torch.zeros(1, 2)).any()}
    assert nonzero == NONZERO_AT_ZERO


@pytest.mark.parametrize(
    "options, named",
    [
        ({"layer_structure": (2, 1)}, "layer_structure 2,1"),
        ({"layer_structure": (1,)}, "layer_structure 1"),
        ({"layer_structure": (1, 0, 1)}, "layer_structure 1,0,1:.*0"),
        ({"activation": "rellu"}, "activation 'rellu'.*leakyrelu"),
        ({"weight_init": "nomal"}, "weight_init 'nomal'.*normal"),
        ({"weight_init": "zero", "activation": "sigmoid", "activate_output": True}, "weight_init zero.*sigmoid"),
        ({"skip_connection": "yes"}, "skip_connection 'yes'.*linear, nearest"),
        ({"skip_connection": "nearest", "weight_init": "zero"}, "weight_init zero.*skip_connection"),
        ({"layer_norm_init": "zeros"}, "layer_norm_init 'zeros'.*normal, ones"),
        ({"dropout_structure": (0, 0.3)}, "dropout_structure 0,0.3:.*3.*0,0.3,0"),
        ({"dropout_structure": (0, 1, 0)}, "dropout_structure 0,1,0:.*3"),
        ({"dropout_structure": (0, 0.3, 1)}, "dropout_structure 0,0.3,1:.*3"),
        ({"dropout_structure": (-0.1, 0.3, 0)}, "dropout_structure -0.1,0.3,0:.*3"),
    ],
)
def test_invalid_structures_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        check_structure(**options)
