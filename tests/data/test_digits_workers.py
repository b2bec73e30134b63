"""Batches do not depend on how they are loaded."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_tuning.data import KeyedLoader

SETTINGS = {"num_labels": 20, "batch_size": 4, "unlabeled_batch_size": 12, "steps_per_epoch": 6, "augment": "strong"}


def hashes_of(loader, digest, epochs=(0, 1)):
    seen = []
    for epoch in epochs:
        # As the Trainer does: first iter, then set_epoch, then the first batch.
        batches = iter(loader)
        loader.sampler.set_epoch(epoch)
        seen += [digest(batch) for batch in batches]
    return seen


@pytest.fixture
def expected(digits, digest):
    hashes = hashes_of(digits(**SETTINGS).train_dataloader(), digest)
    assert len(set(hashes)) == 12
    return hashes


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_workers_gives_the_same_batches(digits, digest, expected, num_workers):
    assert hashes_of(digits(**SETTINGS, num_workers=num_workers).train_dataloader(), digest) == expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {"persistent_workers": False},
        {"prefetch_factor": 1},
        pytest.param({"multiprocessing_context": "spawn"}, marks=pytest.mark.slow),
        pytest.param({"multiprocessing_context": "forkserver", "persistent_workers": False}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_any_kind_of_workers_gives_the_same_batches(digits, digest, expected, kwargs):
    original = digits(**SETTINGS).train_dataloader()
    assert hashes_of(KeyedLoader(original.dataset, original.sampler, num_workers=2, **kwargs), digest) == expected


def test_epochs_after_one_that_was_left_early(digits, digest, expected):
    loader = digits(**SETTINGS, num_workers=2).train_dataloader()
    batches = iter(loader)
    assert digest(next(batches)) == expected[0]
    assert hashes_of(loader, digest) == expected


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loading_takes_nothing_from_the_default_generator(digits, num_workers):
    loader = digits(**SETTINGS, num_workers=num_workers).train_dataloader()
    before = torch.get_rng_state()
    for _ in loader:
        pass
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_a_loader_continues_where_its_state_was_taken(digits, digest, expected, num_workers, done):
    first, second = (digits(**SETTINGS, num_workers=num_workers).train_dataloader() for _ in range(2))
    first.sampler.set_epoch(1)
    batches = iter(first)
    for _ in range(done):
        next(batches)
    state = first.state_dict()
    assert state == {"epoch": 1, "batches": done}
    second.load_state_dict(state)
    assert second.state_dict() == state
    assert hashes_of(second, digest, epochs=[1]) == expected[6 + done :]
    assert hashes_of(second, digest, epochs=[0, 1]) == expected  # the state counts once


def test_a_state_of_another_epoch_starts_at_the_beginning(digits, digest, expected):
    loader = digits(**SETTINGS).train_dataloader()
    loader.load_state_dict({"epoch": 0, "batches": 6})
    assert hashes_of(loader, digest, epochs=[1]) == expected[6:]


def test_evaluation_with_workers_gives_the_same_batches(digits, digest):
    alone, workers = (digits(num_workers=n, eval_batch_size=50).test_dataloader() for n in (0, 2))
    assert isinstance(workers, DataLoader)
    assert workers.num_workers == 2
    assert [digest(batch) for batch in alone] == [digest(batch) for batch in workers]
