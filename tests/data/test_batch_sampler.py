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


def repeated_records(sizes, repeats):
    records = records_of_sizes(sizes)
    for record, times in zip(records, repeats, strict=True):
        record.repeats = times
    return records


def visits(epoch):
    """Return (image, pass) of each visit of an epoch's batches, padding left out."""
    batches = [zip(batch.indices, batch.passes, batch.shares) for batch in epoch]
    return [(index, number) for batch in batches for index, number, share in batch if share]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_repeated_images_are_visited_as_often_each_time_in_another_pass(num_processes):
    repeats = [1, 3, 2, 3, 1]
    records = repeated_records([(64, 64)] * 3 + [(64, 96)] * 2, repeats)
    samplers = [EpochBatchSampler(records, 2, 0, num_processes, index) for index in range(num_processes)]
    seen = [visits(epoch) for sampler in samplers for epoch in epochs(sampler, 4)]
    everything = sorted(visit for epoch in seen for visit in epoch)
    assert everything == sorted((i, number) for i, times in enumerate(repeats) for number in range(4 * times))
    assert samplers[0].visits == 10 and len(samplers[0]) == {1: 3 + 2, 2: 2 + 1}[num_processes]
    assert len(samplers[0]) == len(epochs(samplers[0], 1)[0])
    for batch in itertools.islice(samplers[0], 20):
        assert len({records[index].size for index in batch.indices}) == 1


def test_another_number_of_repeats_begins_a_new_epoch():
    sizes = [(64, 64)] * 4
    before = EpochBatchSampler(records_of_sizes(sizes), 2, seed=0, start=(2, 1))
    assert EpochBatchSampler(repeated_records(sizes, [1] * 4), 2, seed=0).fingerprint == before.fingerprint
    other = EpochBatchSampler(repeated_records(sizes, [1, 2, 1, 1]), 2, seed=0)
    other.load_state_dict(before.state_dict())
    assert other.restarts and other.start == (3, 0)


def test_rounds_only_change_how_epochs_are_counted():
    records = records_of_sizes([(64, 64)] * 5 + [(64, 96)] * 2)
    plain, counted = (EpochBatchSampler(records, 2, seed=1, rounds=rounds) for rounds in (1, 3))
    assert len(plain) == 4 and len(counted) == 12 and counted.visits == 21
    for one, other in zip(itertools.islice(plain, 30), counted):
        assert (one.indices, one.shares, one.passes) == (other.indices, other.shares, other.passes)
        assert other.epoch * 12 + other.epoch_step == one.epoch * 4 + one.epoch_step
        assert plain.round_of((one.epoch, one.epoch_step)) == counted.round_of((other.epoch, other.epoch_step))
    # a resumed run continues at the same place, whatever an epoch is now
    plain.start = (4, 3)
    counted.load_state_dict(plain.state_dict())
    assert counted.start == (1, 7) and not counted.restarts
    assert next(iter(counted)).indices == next(iter(plain)).indices
    plain.load_state_dict(counted.state_dict())
    assert plain.start == (4, 3)
    state = plain.state_dict()
    del state["rounds"]  # of an earlier version
    counted.load_state_dict(state)
    assert counted.start == (1, 7)
    fewer = EpochBatchSampler(records[1:], 2, seed=1, rounds=3)
    fewer.load_state_dict(plain.state_dict())
    assert fewer.restarts and fewer.start == (2, 0)
