"""The exponential moving average of the weights (`--ema_decay`), which is what is previewed, validated and exported."""

import contextlib

from diffusers.training_utils import EMAModel

from hypernet.modeling.hypernetwork import Hypernetwork


class WeightAverage:
    """diffusers' `EMAModel` of a hypernetwork, or nothing at all without a decay.

    The decay grows with the updates, (1 + n) / (10 + n), up to the one asked for, so that the start is soon forgotten.
    """

    def __init__(self, hypernetwork: Hypernetwork, decay: float):
        self.parameters = list(hypernetwork.parameters())
        self.ema = EMAModel(self.parameters, decay=decay) if decay else None

    def step(self):
        """To be called after each update."""
        if self.ema is not None:
            self.ema.step(self.parameters)

    @contextlib.contextmanager
    def applied(self):
        """Within it, the hypernetwork's weights are the average."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def state_dict(self) -> dict:
        return {} if self.ema is None else self.ema.state_dict()

    def load_state_dict(self, state: dict):
        if self.ema is not None and state:
            self.ema.load_state_dict({**state, "decay": self.ema.decay})
            self.ema.to(self.parameters[0].device)
