"""The structures a hypernetwork may have. Does not import torch, so that mistakes in options are reported at once."""

import re
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

# Activation by the WebUI's name -> its class in torch.nn. The WebUI's "swish" is Hardswish; "linear" is none.
ACTIVATIONS: dict[str, str | None] = {
    name.lower(): name
    for name in (
        "CELU ELU GELU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU RReLU ReLU "
        "ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh Tanhshrink"
    ).split()
}
ACTIVATIONS |= {"swish": "Hardswish", "linear": None}
NONZERO_AT_ZERO = {"hardsigmoid", "logsigmoid", "logsoftmax", "sigmoid", "softmax", "softmin", "softplus"}
WEIGHT_INITS = ("normal", "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "zero")
LAYER_NORM_INITS = ("ones", "normal")
SKIP_CONNECTIONS = ("nearest", "linear")  # how a layer's input is resized before it is added to the output
# Other words for an activation, for `find_word`. The WebUI prints "Activation function is None"
SAME_ACTIVATIONS = {"none": "linear", "identity": "linear"}


def find_word(word: str, choices: Collection[str], same_words: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return the choice that a word means, in any case and spelling: "ReLU", "XavierNormal", "leaky_relu", "None".

    An unknown word is returned unchanged.

    Args:
        same_words: other words for some choices, in lower case without separators.
    """

    def plain(text: str) -> str:
        return re.sub(r"[\s_-]", "", text.lower())

    known = {**same_words, **{plain(choice): choice for choice in choices}}
    found = known.get(plain(word), word)
    return found if found in choices else word


def check_structure(
    layer_structure: Sequence[float] = (1, 2, 1),
    activation: str = "linear",
    weight_init: str = "normal",
    layer_norm: bool = False,
    layer_norm_init: str = "ones",
    activate_output: bool = False,
    dropout_structure: Sequence[float] | None = None,
    skip_connection: str | None = None,
) -> None:
    """Check that a module can be built from these arguments of `Hypernetwork`.

    Raises:
        ValueError: if not; the message is one line and says what would be right.
    """
    shown = ",".join(f"{multiple:g}" for multiple in layer_structure)
    if len(layer_structure) < 2:
        raise ValueError(f"layer_structure {shown}: it needs two widths or more, as in 1,2,1")
    if layer_structure[0] != 1 or layer_structure[-1] != 1:
        raise ValueError(f"layer_structure {shown}: it must start and end with 1, as in 1,2,1")
    if min(layer_structure) <= 0:
        raise ValueError(f"layer_structure {shown}: each width must be more than 0, as in 1,2,1")
    _check_choice("activation", activation, ACTIVATIONS)
    _check_choice("weight_init", weight_init, WEIGHT_INITS)
    _check_choice("layer_norm_init", layer_norm_init, LAYER_NORM_INITS)
    if skip_connection is not None:
        _check_choice("skip_connection", skip_connection, SKIP_CONNECTIONS)
        if weight_init == "zero":
            raise ValueError("weight_init zero: with a skip_connection it would not start as the identity; use normal")
    if weight_init == "zero" and activate_output and activation in NONZERO_AT_ZERO:
        raise ValueError(
            f"weight_init zero: {activation}(0) is not 0, so with activate_output this is not the identity"
        )
    if dropout_structure is not None:
        in_range = all(0 <= p < 1 for p in dropout_structure)
        same_length = len(dropout_structure) == len(layer_structure)
        if not (in_range and same_length):
            shown = ",".join(f"{p:g}" for p in dropout_structure)
            example = ",".join(["0", *["0.3"] * (len(layer_structure) - 2), "0"])
            raise ValueError(
                f"dropout_structure {shown}: it needs {len(layer_structure)} probabilities, at least 0 and below 1, "
                f"as in {example}"
            )


def _check_choice(option: str, value: str, choices: Collection[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option} {value!r} is unknown; choose one of {', '.join(sorted(choices))}")
