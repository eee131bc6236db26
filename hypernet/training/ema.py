"""Exponential moving average of the weights (`--ema_decay`), used for previews, validation and export."""

import contextlib
from collections.abc import Iterator

from diffusers.training_utils import EMAModel

from hypernet.modeling.hypernetwork import Hypernetwork


class EMA:
    """diffusers' `EMAModel` of a hypernetwork; with a decay of 0 it does nothing.

    The decay warms up as (1 + n) / (10 + n) after n updates, so that the initial weights are soon forgotten.
    """

    def __init__(self, hypernetwork: Hypernetwork, decay: float):
        self.hypernetwork, self.parameters = hypernetwork, list(hypernetwork.parameters())
        self.average = EMAModel(self.parameters, decay=decay) if decay else None

    def step(self) -> None:
        """Update the average. Call it after each optimizer update."""
        if self.average is not None:
            self.average.step(self.parameters)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the hypernetwork has the averaged weights and no dropout. Do not nest it."""
        self.hypernetwork.eval()
        if self.average is not None:
            self.average.store(self.parameters)
            self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            self.hypernetwork.train()
            if self.average is not None:
                self.average.restore(self.parameters)

    def state_dict(self) -> dict:
        """Return the average and its counters; empty without a decay."""
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state: dict) -> None:
        """Restore the average; the decay stays the current run's."""
        if self.average is not None and state:
            self.average.load_state_dict({**state, "decay": self.average.decay})
            self.average.to(self.parameters[0].device)
