"""The order in which images come: every image once per epoch, in batches of one size."""
from typing import NamedTuple

import numpy as np
import torch

from hypernet.data.image_index import ImageRecord
from hypernet.utils.hashing import derive_seed


class Batch(NamedTuple):
    """Images of one size, this process's share of a batch. It travels through PyTorch's loader as "the indices"."""

    epoch: int
    epoch_step: int
    indices: list[int]
    shares: list[float]  # what each adds to this process's loss; 0 for one that only fills the batch up


class EpochBatchSampler(torch.utils.data.Sampler):
    """The batches of a run, without end: every image once per epoch, in a new order, in batches of one size.

    What is left over of a size comes in a smaller batch. Several processes get equally many images of each; where they
    cannot, the batch is filled up with images that count nothing. Shares are such that the mean of the processes' losses
    is the mean over the batch's images. `start` is the first (epoch, batch of the epoch).
    """

    def __init__(self, pictures: list[ImageRecord], batch_size: int, seed: int, processes=1, process=0, start=(0, 0)):
        sizes = [picture.size for picture in pictures]
        self.restarts = False
        self.seed, self.processes, self.process, self.start = seed, processes, process, start
        self.total = batch_size * processes
        ids = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
        which = np.array([ids[size] for size in sizes])
        images = [(picture.sha256, picture.size) for picture in pictures]
        self.fingerprint = f"{derive_seed(self.total, *images):x}"
        self.groups = [torch.from_numpy(np.flatnonzero(which == number)) for number in range(len(ids))]

    def __len__(self):
        """Batches per epoch."""
        return sum(-(-len(group) // self.total) for group in self.groups)

    @property
    def shapes(self) -> int:
        """How many shapes the batches have: their sizes, and what is left over of each."""
        shares = [{len(part) for part in torch.arange(len(group)).split(self.total)} for group in self.groups]
        return sum(map(len, shares))

    def __iter__(self):
        epoch, skipped = self.start
        while True:
            for epoch_step, indices in enumerate(self._epoch(epoch)):
                if epoch_step >= skipped:
                    yield self._share(epoch, epoch_step, indices.tolist())
            epoch, skipped = epoch + 1, 0

    def state_dict(self) -> dict:
        """Where the next batch is, and among which images and batches."""
        return {"start": self.start, "fingerprint": self.fingerprint}

    def load_state_dict(self, state: dict):
        """Go on there; with other images, or other batches of them, at the beginning of the next epoch."""
        same = state["fingerprint"] == self.fingerprint
        epoch, epoch_step = state["start"]
        self.start, self.restarts = ((epoch, epoch_step) if same else (epoch + 1, 0)), not same

    def _epoch(self, epoch):
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
        orders = [group[torch.randperm(len(group), generator=generator)] for group in self.groups]
        batches = [batch for order in orders for batch in order.split(self.total)]
        if len(self.groups) > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _share(self, epoch, epoch_step, indices):
        each = -(-len(indices) // self.processes)
        shares = [self.processes / len(indices)] * len(indices)
        filling = each * self.processes - len(indices)
        mine = slice(self.process * each, (self.process + 1) * each)
        return Batch(epoch, epoch_step, (indices + indices[:1] * filling)[mine], (shares + [0.0] * filling)[mine])
