import numpy as np
import pytest
from torch.utils.data import DistributedSampler, SequentialSampler

from lightning_tuning.data import EvalSampler, FixedSampler, KeyedSampler, Stream
from lightning_tuning.data.hashing import hashes

POOL = np.array([3, 14, 15, 92, 65, 35, 89])


def pairs(keys):
    return list(zip(keys.indices.tolist(), keys.seeds.tolist(), strict=True))


def flat(sampler, stream=0):
    """All (index, seed) of a stream in the order of an epoch."""
    return [pair for keys in sampler for pair in pairs(keys[stream])]


def one_stream(batch_size=4, steps=5, **kwargs):
    return KeyedSampler([Stream("labeled", POOL, batch_size)], steps, **kwargs)


def test_every_pass_is_a_permutation_of_the_pool_and_no_two_are_alike():
    indices = [index for index, _ in flat(one_stream(batch_size=7, steps=6))]
    passes = [indices[i : i + 7] for i in range(0, 42, 7)]
    assert all(sorted(one) == sorted(POOL.tolist()) for one in passes)
    assert len({tuple(one) for one in passes}) == 6


def test_batches_are_full_when_the_pool_ends_within_one():
    steps = [keys[0].indices.tolist() for keys in one_stream()]
    assert [len(step) for step in steps] == [4] * 5 == [4] * len(one_stream())
    assert sorted((steps[0] + steps[1])[:7]) == sorted(POOL.tolist())


def test_every_position_of_every_epoch_has_a_seed_of_its_own():
    sampler, seeds = one_stream(), set()
    for epoch in range(10):
        sampler.set_epoch(epoch)
        seeds |= {seed for _, seed in flat(sampler)}
    assert len(seeds) == 10 * 20


def test_order_and_seeds_depend_on_seed_and_epoch_alone():
    sampler = one_stream(seed=1)
    first = flat(sampler)
    sampler.set_epoch(1)
    second = flat(sampler)
    sampler.set_epoch(0)
    assert flat(sampler) == first == flat(one_stream(seed=1))
    assert second != first != flat(one_stream(seed=2))


def test_streams_are_independent_of_each_other():
    labeled, unlabeled = Stream("labeled", POOL, 2), Stream("unlabeled", POOL, 3)
    both = KeyedSampler([labeled, unlabeled], 4)
    assert flat(both, 0) == flat(KeyedSampler([labeled], 4))
    assert flat(both, 1) == flat(KeyedSampler([unlabeled], 4))
    assert not {seed for _, seed in flat(both, 0)} & {seed for _, seed in flat(both, 1)}
    assert [index for index, _ in flat(both, 0)][:7] != [index for index, _ in flat(both, 1)][:7]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_see_what_one_process_with_a_larger_batch_sees(world):
    whole = one_stream(batch_size=4 * world, seed=3)
    ranks = [one_stream(batch_size=4, seed=3, num_replicas=world, rank=rank) for rank in range(world)]
    for sampler in (whole, *ranks):
        sampler.set_epoch(2)
    for (alone,), *shares in zip(whole, *ranks, strict=True):
        assert sorted(pair for (keys,) in shares for pair in pairs(keys)) == sorted(pairs(alone))
        assert all(len(keys.indices) == 4 for (keys,) in shares)


def test_an_epoch_can_begin_at_any_step():
    whole, sampler = flat(one_stream()), one_stream()
    sampler.start = 3
    assert flat(sampler) == whole[12:]
    assert len(sampler) == 5  # the length of the whole epoch, which the Trainer counts in


def test_the_trainer_recognises_the_samplers():
    fixed = FixedSampler([Stream("labeled", POOL, 4)], 5)
    assert isinstance(one_stream(), DistributedSampler)
    assert not isinstance(one_stream(), SequentialSampler)
    assert isinstance(fixed, DistributedSampler)
    assert isinstance(fixed, SequentialSampler)
    fixed.set_epoch(4)
    assert flat(fixed) == flat(one_stream())


def test_hashes_stay_the_same_for_ever():
    """Written down once: other numbers would change every user's runs."""
    assert hashes(3, 7, "order", 2, 1).tolist() == [0x91D792CBBB653CF2, 0xCA90BB0D7BBA3CC3, 0xC1A281AE8E1C3CAB]


def test_hashes_differ_in_every_argument():
    keys = [(7, "order"), (7, "Order"), (8, "order"), (7, "order", 1), (7, "order", 0, 1), (0, "order"), (7, "")]
    assert len({int(hashes(1, *key)[0]) for key in keys}) == len(keys)


@pytest.mark.parametrize("size", [1, 2, 5, 8, 9, 17])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_evaluation_sees_each_sample_once_and_all_ranks_have_as_many_batches(size, batch_size, ranks):
    samplers = [EvalSampler(size, batch_size, ranks, rank) for rank in range(ranks)]
    batches = [list(sampler) for sampler in samplers]
    assert {len(b) for b in batches} == {len(samplers[0])}
    most = batch_size + (batch_size == 1 and size % ranks > 0)
    assert all(1 <= len(positions) <= most for b in batches for positions in b)
    seen = np.concatenate([positions for b in batches for positions in b])
    assert set(seen.tolist()) == set(range(size))
    if size >= ranks:
        assert len(seen) == size


def test_the_order_is_of_the_epoch():
    """The augmentation's seeds differ anyway, so this has to be asked of the images themselves."""
    sampler = KeyedSampler([Stream("labeled", np.arange(50), 50)], steps=1, seed=0)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        orders.append(next(iter(sampler))[0].indices)
    assert not np.array_equal(*orders)
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(50))
