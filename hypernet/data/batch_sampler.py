"""The order of the images: each once per epoch, or as often as it is repeated, in batches of one size."""

import itertools
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
    passes: list[int] | None = None  # the pass over each image, which its noise and so on depend on; default: the epoch


class EpochBatchSampler(torch.utils.data.Sampler):
    """Endless batches of one size. An epoch is one round or several; a round visits each image as often as its record
    repeats it, in a new order.

    Repetitions are further indices of an image, so nothing is encoded or stored twice. The n-th visit to an image in
    the whole run, counted from 0, is its pass n; its noise and so on are those of epoch n without repeats.

    The last batch of a size may be smaller. Each process gets the same number of images of a batch; a batch that does
    not divide evenly is padded with images of share 0. The shares make the mean of the processes' losses equal the
    mean over the batch's images.

    Args:
        rounds: the number of rounds per epoch, `--repeats`.

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
        rounds: int = 1,
    ):
        sizes = [record.size for record in records]
        self.restarts = False
        self.seed, self.num_processes, self.process_index, self.start = seed, num_processes, process_index, start
        self.rounds, self.repeats = rounds, np.array([record.repeats for record in records])
        self.total_batch_size = batch_size * num_processes
        numbers = {size: number for number, size in enumerate(dict.fromkeys(sizes))}
        visited = np.repeat(np.arange(len(records)), self.repeats)  # the image of each visit of a round
        groups = np.array([numbers[size] for size in sizes])[visited]
        images = [(record.sha256, record.size, *[record.repeats] * (record.repeats > 1)) for record in records]
        self.fingerprint = f"{derive_seed(self.total_batch_size, *images):x}"
        by_size = np.argsort(groups, kind="stable")
        ends = np.flatnonzero(np.diff(groups[by_size])) + 1
        self._groups = [torch.from_numpy(group) for group in np.split(by_size, ends)]  # the visits of each size
        self._round_length = sum(-(-len(group) // self.total_batch_size) for group in self._groups)
        self._images = visited.tolist()
        # for each visit: how many visits to the same image precede it in its round
        self._earlier = (np.arange(len(visited)) - (np.cumsum(self.repeats) - self.repeats)[visited]).tolist()

    def __len__(self) -> int:
        """Return the number of batches per epoch."""
        return self.rounds * self._round_length

    @property
    def visits(self) -> int:
        """The number of images per epoch, repetitions included."""
        return self.rounds * len(self._images)

    @property
    def shape_count(self) -> int:
        """The number of distinct batch shapes: each size has that of its full batches, and that of its last one."""
        counts = (divmod(len(group), self.total_batch_size) for group in self._groups)
        return sum(bool(full) + bool(rest) for full, rest in counts)

    def __iter__(self) -> Iterator[Batch]:
        first, skipped = self.round_of(self.start)
        for number in itertools.count(first):
            for step, visits in enumerate(self._round(number)):
                if step >= skipped:
                    yield self._part(number, number % self.rounds * self._round_length + step, visits.tolist())
            skipped = 0

    def round_of(self, place: tuple[int, int]) -> tuple[int, int]:
        """Return the round and the batch of the round at (epoch, batch of the epoch)."""
        rounds, step = divmod(place[1], self._round_length)
        return place[0] * self.rounds + rounds, step

    def state_dict(self) -> dict:
        """Return the (epoch, batch) to resume at, the rounds per epoch, and the fingerprint."""
        return {"start": self.start, "fingerprint": self.fingerprint, "rounds": self.rounds}

    def load_state_dict(self, state: dict) -> None:
        """Resume there; at the beginning of the next epoch if the images or batches have changed."""
        same = state["fingerprint"] == self.fingerprint
        epoch, epoch_step = state["start"]
        before = state.get("rounds", 1)  # earlier versions had one
        if before != self.rounds:  # the same place, counted differently
            rounds, step = divmod(epoch_step, self._round_length) if same else (before - 1, 0)
            epoch, rounds = divmod(epoch * before + rounds, self.rounds)
            epoch_step = rounds * self._round_length + step
        self.start, self.restarts = ((epoch, epoch_step) if same else (epoch + 1, 0)), not same

    def _round(self, number: int) -> list[torch.Tensor]:
        """Return the batches of a round as visits, for all processes together."""
        generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", number))
        orders = [group[torch.randperm(len(group), generator=generator)] for group in self._groups]
        batches = [batch for order in orders for batch in order.split(self.total_batch_size)]
        if len(self._groups) > 1:
            batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
        return batches

    def _part(self, number: int, epoch_step: int, visits: list[int]) -> Batch:
        """Return this process's part of a batch of a round."""
        count = -(-len(visits) // self.num_processes)
        shares = [self.num_processes / len(visits)] * len(visits)
        padding = count * self.num_processes - len(visits)
        own = slice(self.process_index * count, (self.process_index + 1) * count)
        visits, shares = (visits + visits[:1] * padding)[own], (shares + [0.0] * padding)[own]
        indices = [self._images[visit] for visit in visits]
        passes = [number * int(self.repeats[self._images[visit]]) + self._earlier[visit] for visit in visits]
        return Batch(number // self.rounds, epoch_step, indices, shares, passes)
