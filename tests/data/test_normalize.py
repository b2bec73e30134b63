"""Batches are normalised as a whole, with the same result wherever their memory comes from."""

import numpy as np
import pytest
import torch

from lightning_tuning.data.normalize import Normalize, stack


@pytest.mark.parametrize("shape", [(3, 5, 7, 3), (2, 8, 8, 1), (58, 220, 220, 3), (1, 2900, 2900, 1)])
def test_it_is_the_formula(shape):
    """The last two are more and a little more than 32 MB."""
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    channels = shape[3]
    mean, std = [0.4, 0.5, 0.1][:channels], [0.2, 0.3, 0.7][:channels]
    batch = Normalize(mean, std).batch(stack(images))
    shift, scale = (255 * torch.tensor(numbers).numpy() for numbers in (mean, std))
    expected = (images.astype(np.float32) - shift) / scale
    np.testing.assert_array_equal(batch.numpy(), expected.transpose(0, 3, 1, 2))
    assert batch.dtype == torch.float32
    assert batch.is_contiguous()
    assert batch.data_ptr() % 64 == 0


def test_two_large_batches_have_memory_of_their_own():
    normalize, x = Normalize([0.5], [0.5]), torch.zeros(1, 1, 3000, 3000, dtype=torch.uint8)
    black, white = normalize.batch(x), normalize.batch(x + 255)
    assert (black == -1).all()
    assert (white == 1).all()
