"""The order of the images: each once per epoch, in batches of one size."""

import typing
from collections.abc import Iterator

import numpy as np
import torch

from hypernet.data.image_index import ImageRecord
from hypernet.utils.hashing import derive_seed


class Batch(typing.NamedTuple):
    """One process's part of a batch. PyTorch's loader passes it to the dataset in place of a list of indices."""

    epoch: int
    epoch_step: int
    indices: list[int]  # of images of one size
    shares: list[float]  # weight of each image in this process's loss; 0 for padding


class EpochBatchSampler(torch.utils.data.Sampler):
    """Endless batches: every epoch visits each image once, in a new order, in batches of one size.

    The last batch of a size may be smaller. Each process gets the same number of images of a batch; a batch that does
    not divide evenly is padded with images of share 0. The shares make the mean of the processes' losses equal the
    mean over the batch's images.

    Attributes:
        start: (epoch, batch of the epoch) to start at.
        fingerprint: changes with the images and how they are batched.
        restarts: whether `load_state_dict` began a new epoch because the images or batches have changed.
    """

    def __init__(
        self,
        records: list[ImageRecord],
        batch_size: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        start: tuple[int, int] = (0, 0),
    ):
        sizes = [record.size for record in records]
        self.restarts = False
        self.seed, self.num_processes, self.process_index, self.start = seed, num_processes, process_index, start
        self.total_batch_size = batch_size * num_processes
        numbers = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
        groups = np.array([numbers[size] for size in sizes])
        images = [(record.sha256, record.size) for record in records]
        self.fingerprint = f"{derive_seed(self.total_batch_size, *images):x}"
        self._groups = [torch.from_numpy(np.flatnonzero(groups == number)) for number in range(len(numbers))]

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return sum(-(-len(group) // self.total_batch_size) for group in self._groups)

    @property
    def shape_count(self) -> int:
        """The number of distinct batch shapes: each size has that of its full batches, and that of its last one."""
        lengths = [
            {len(part) for part in torch.arange(len(group)).split(self.total_batch_size)} for group in self._groups
        ]
        return sum(map(len, lengths))

    def __iter__(self) -> Iterator[Batch]:
        epoch, skipped = self.start
        while True:
            for epoch_step, indices in enumerate(self._epoch(epoch)):
                if epoch_step >= skipped:
                    yield self._part(epoch, epoch_step, indices.tolist())
            epoch, skipped = epoch + 1, 0

    def state_dict(self) -> dict:
        """Return the (epoch, batch) to resume at, and the fingerprint."""
        return {"start": self.start, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        """Resume there; at the beginning of the next epoch if the images or batches have changed."""
        same = state["fingerprint"] == self.fingerprint
        epoch, epoch_step = state["start"]
        self.start, self.restarts = ((epoch, epoch_step) if same else (epoch + 1, 0)), not same

    def _epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return the batches of an epoch as image indices, for all processes together."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        orders = [group[torch.randperm(len(group), generator=generator)] for group in self._groups]
        batches = [batch for order in orders for batch in order.split(self.total_batch_size)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _part(self, epoch: int, epoch_step: int, indices: list[int]) -> Batch:
        """Return this process's part of a batch."""
        count = -(-len(indices) // self.num_processes)
        shares = [self.num_processes / len(indices)] * len(indices)
        padding = count * self.num_processes - len(indices)
        own = slice(self.process_index * count, (self.process_index + 1) * count)
        return Batch(epoch, epoch_step, (indices + indices[:1] * padding)[own], (shares + [0.0] * padding)[own])
