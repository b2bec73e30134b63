import numpy as np
import pytest
import torch

from lightning_tuning.mixins.distribution_alignment import DistributionAlignment
from tests.numerics import array, one_hot


def draws(steps, seed=0, shape=()):
    generator = torch.Generator().manual_seed(seed)
    predictions = [torch.randn(8, 3, *shape, generator=generator).softmax(1) for _ in range(steps)]
    targets = [torch.randint(3, (4, *shape), generator=generator) for _ in range(steps)]
    return predictions, [torch.from_numpy(one_hot(ids.numpy(), 3)).float() for ids in targets]


def aligned(q, wanted, average):
    scaled = np.stack([[row[c] * wanted[c] / average[c] for c in range(3)] for row in array(q)])
    return scaled / scaled.sum(1, keepdims=True)


def test_against_lists_of_all_batches():
    """The mean of the last 3 batches' mean predictions; the shares of all labels, each class once more."""
    state = DistributionAlignment(3, window=3)
    predictions, targets = draws(7)
    for step, (q, target) in enumerate(zip(predictions, targets, strict=True)):
        last = [array(p).mean(0) for p in predictions[max(step - 2, 0) : step + 1]]
        counts = 1 + sum(array(t).sum(0) for t in targets[: step + 1])
        expected = aligned(q, counts / counts.sum(), sum(last) / len(last))
        np.testing.assert_allclose(array(state(q, target)), expected, atol=1e-4)
        state.commit()


def test_a_window_of_micro_batches_is_one_batch():
    state = DistributionAlignment(3, window=2)
    predictions, targets = draws(4)
    for first in (0, 2):
        for k in (first, first + 1):
            state(predictions[k], targets[k])
        state.commit()
    assert state.steps == 2
    expected = [(array(predictions[k]).mean(0) + array(predictions[k + 1]).mean(0)) / 2 for k in (0, 2)]
    np.testing.assert_allclose(array(state.recent), np.stack(expected), atol=1e-6)
    labels = 1 + sum(array(t).sum(0) for t in targets)
    np.testing.assert_allclose(array(state.labels), labels, atol=1e-6)


def test_what_is_not_recorded_moves_nothing():
    state = DistributionAlignment(3)
    (q, _), (target, _) = draws(2)
    first = state(q, target)
    again = state(q, target, record=False)
    assert torch.equal(first, again)
    state.commit()
    assert state.steps == 1
    before = {name: value.clone() for name, value in state.state_dict().items()}
    state(q, target, record=False)
    state.commit()
    assert all(torch.equal(value, before[name]) for name, value in state.state_dict().items())


def test_dense_predictions_count_each_position():
    state = DistributionAlignment(3)
    (q,), (target,) = draws(1, shape=(2, 2))
    result = state(q, target)
    rows = torch.from_numpy(np.moveaxis(array(q), 1, -1).reshape(-1, 3))
    ids = np.moveaxis(array(target), 1, -1).reshape(-1, 3)
    counts = 1 + ids.sum(0)
    expected = aligned(rows, counts / counts.sum(), array(rows).mean(0))
    np.testing.assert_allclose(np.moveaxis(array(result), 1, -1).reshape(-1, 3), expected, atol=1e-4)
    state.commit()
    assert state.labels.sum().item() == 3 + 16


def test_a_class_that_was_never_a_label_is_not_ruled_out():
    state = DistributionAlignment(3)
    result = state(torch.full((2, 3), 1 / 3), torch.tensor([[1.0, 0.0, 0.0]] * 2))
    assert result[0].tolist() == pytest.approx([0.6, 0.2, 0.2], abs=1e-4)
