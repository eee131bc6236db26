"""The order of the images: each once per epoch, in batches of one size."""

import typing
from collections.abc import Iterator

import numpy as np
import torch

from hypernet.data.image_index import ImageRecord
from hypernet.utils.hashing import derive_seed


class Batch(typing.NamedTuple):
    """This process's share of a batch. PyTorch's loader passes it on in place of a list of indices."""

    epoch: int
    epoch_step: int
    indices: list[int]  # of images of one size
    shares: list[float]  # weight of each image in this process's loss; 0 for padding


class EpochBatchSampler(torch.utils.data.Sampler):
    """Endless batches: each image once per epoch, in a new order, in batches of one size.

    The remainder of a size comes in a smaller batch. Processes get equally many images of each batch; a batch that
    cannot be divided is padded with images of share 0. Shares are such that the mean of the processes' losses is the
    mean over the batch's images.

    Attributes:
        start: (epoch, batch of the epoch) to start at.
        fingerprint: of the images and their batches.
        restarts: whether a loaded state was of other images or batches, so that a new epoch begins.
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
    def shapes(self) -> int:
        """The number of different batch shapes: for each size that of a full batch and that of the remainder."""
        lengths = [
            {len(part) for part in torch.arange(len(group)).split(self.total_batch_size)} for group in self._groups
        ]
        return sum(map(len, lengths))

    def __iter__(self) -> Iterator[Batch]:
        epoch, skipped = self.start
        while True:
            for epoch_step, indices in enumerate(self._epoch(epoch)):
                if epoch_step >= skipped:
                    yield self._share(epoch, epoch_step, indices.tolist())
            epoch, skipped = epoch + 1, 0

    def state_dict(self) -> dict:
        """Return the place of the next batch, and the fingerprint of images and batches."""
        return {"start": self.start, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict) -> None:
        """Continue from there; with other images or batches, from the beginning of the next epoch."""
        same = state["fingerprint"] == self.fingerprint
        epoch, epoch_step = state["start"]
        self.start, self.restarts = ((epoch, epoch_step) if same else (epoch + 1, 0)), not same

    def _epoch(self, epoch: int) -> list[torch.Tensor]:
        """Return the batches of an epoch as indices of images."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        orders = [group[torch.randperm(len(group), generator=generator)] for group in self._groups]
        batches = [batch for order in orders for batch in order.split(self.total_batch_size)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _share(self, epoch: int, epoch_step: int, indices: list[int]) -> Batch:
        """Return this process's share of a batch."""
        count = -(-len(indices) // self.num_processes)
        shares = [self.num_processes / len(indices)] * len(indices)
        padding = count * self.num_processes - len(indices)
        own = slice(self.process_index * count, (self.process_index + 1) * count)
        return Batch(epoch, epoch_step, (indices + indices[:1] * padding)[own], (shares + [0.0] * padding)[own])
