"""Every image once per epoch, in batches of one size, whatever the number of processes."""

import itertools
import random

import pytest

from hypernet.data.batch_sampler import EpochBatchSampler
from tests.helpers.encoding import records_of_sizes


def epochs(batches, count):
    """Return the batches of each of the first epochs."""
    found = {}
    for batch in batches:
        if batch.epoch == count:
            return [found[epoch] for epoch in range(count)]
        found.setdefault(batch.epoch, []).append(batch)


def test_every_image_once_per_epoch_in_a_new_order():
    batches = EpochBatchSampler(records_of_sizes([(64, 64)] * 10), 4, seed=0)
    sampled = epochs(batches, 3)
    assert len(batches) == 3
    for epoch in sampled:
        assert [len(batch.indices) for batch in epoch] == [4, 4, 2]
        assert sorted(index for batch in epoch for index in batch.indices) == list(range(10))
        assert [batch.epoch_step for batch in epoch] == [0, 1, 2]
        assert all(batch.shares == [1 / len(batch.indices)] * len(batch.indices) for batch in epoch)
    assert sampled[0] != sampled[1] != sampled[2]
    later = EpochBatchSampler(records_of_sizes([(64, 64)] * 10), 4, seed=0, start=(1, 1))
    assert list(itertools.islice(later, 5)) == [*sampled[1][1:], *sampled[2]]


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_batches_have_one_size_and_processes_keep_step(num_processes):
    rng = random.Random(0)
    sizes = [rng.choice([(64, 64), (64, 128), (128, 64), (96, 96)]) for _ in range(41)] + [(8, 8)]
    records = records_of_sizes(sizes)
    shards = [epochs(EpochBatchSampler(records, 3, 1, num_processes, index), 3) for index in range(num_processes)]
    for epoch in range(3):
        seen = []
        steps = list(zip(*(shard[epoch] for shard in shards), strict=True))
        assert len(steps) == sum(-(-sizes.count(size) // (3 * num_processes)) for size in set(sizes))
        for step in steps:
            assert len({sizes[index] for batch in step for index in batch.indices}) == 1
            assert len({len(batch.indices) for batch in step}) == 1 and 1 <= len(step[0].indices) <= 3
            counting = [(i, share) for batch in step for i, share in zip(batch.indices, batch.shares) if share]
            assert all(share == num_processes / len(counting) for _, share in counting)
            seen += [index for index, _ in counting]
        assert sorted(seen) == list(range(42))
    orders = [[sizes[batch.indices[0]] for batch in epoch] for epoch in shards[0]]
    assert orders[0] != orders[1]


def test_a_loaded_state_continues_or_begins_a_new_epoch():
    before = EpochBatchSampler(records_of_sizes([(64, 64)] * 10), 4, seed=0, start=(2, 1))
    after = EpochBatchSampler(records_of_sizes([(64, 64)] * 10), 4, seed=0)
    after.load_state_dict(before.state_dict())
    assert after.start == (2, 1) and not after.restarts
    replaced = records_of_sizes([(64, 64)] * 10)
    replaced[3].sha256 = "another"
    same, more = records_of_sizes([(64, 64)] * 10), records_of_sizes([(64, 64)] * 13)
    for records, batch_size in [(more, 4), (replaced, 4), (same, 5)]:
        other = EpochBatchSampler(records, batch_size, seed=0)
        other.load_state_dict(before.state_dict())
        assert other.start == (3, 0) and other.restarts and next(iter(other)).epoch == 3
