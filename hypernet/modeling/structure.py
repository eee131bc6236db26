"""The structures a hypernetwork may have. Does not import torch, so that mistakes in options are reported at once."""

from collections.abc import Collection, Sequence

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
SAME_WORDS = {"none": "linear", "identity": "linear"}  # the WebUI prints "Activation function is None"


def find_word(word: str, choices: Collection[str]) -> str:
    """Return the choice that a word means, in any case and spelling: "ReLU", "XavierNormal", "leaky_relu", "None".

    An unknown word is returned unchanged.
    """

    def plain(text: str) -> str:
        return text.strip().lower().replace("_", "").replace("-", "").replace(" ", "")

    known = {plain(choice): choice for choice in choices}
    same = SAME_WORDS.get(plain(word), word)
    return known.get(plain(word)) or (same if same in choices else word)


def check_structure(
    layer_structure: Sequence[float] = (1, 2, 1),
    activation: str = "linear",
    weight_init: str = "normal",
    layer_norm: bool = False,
    layer_norm_init: str = "ones",
    activate_output: bool = False,
    dropout_structure: Sequence[float] | None = None,
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
