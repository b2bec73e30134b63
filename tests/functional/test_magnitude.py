"""Octave histograms against numpy's frexp in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lightning_tuning.functional import magnitude_counts


def by_hand(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64).ravel()
    counts = np.zeros(66, dtype=int)
    for value in values:
        if not np.isfinite(value):
            counts[65] += 1
        elif value == 0:
            counts[64] += 1
        else:
            exponent = np.frexp(value)[1] - 1  # frexp's mantissa is in [0.5, 1)
            counts[min(max(exponent + 48, 0), 63)] += 1
    return counts


SPREAD = [2.0**e * m for e in range(-70, 40) for m in (1.0, 1.5, -1.9999)]
SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-40, -1e-45]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_counts_are_those_of_frexp(dtype: torch.dtype) -> None:
    tensors = [torch.tensor(SPREAD).to(dtype), torch.tensor(SPECIAL).to(dtype), torch.randn(7, 11).to(dtype)]
    expected = [by_hand(t.double().numpy()) for t in tensors]
    assert magnitude_counts(tensors).tolist() == [row.tolist() for row in expected]


def test_half_precision_with_subnormals() -> None:
    values = torch.tensor([2.0**-24, 2.0**-14, 65504.0, 3e-6, 0.0, float("inf")], dtype=torch.float16)
    assert magnitude_counts([values])[0].tolist() == by_hand(values.double().numpy()).tolist()


def test_numbers_that_float32_cannot_hold() -> None:
    values = torch.tensor([1e-300, 1e300, -1e-310, 5e-324, 1e39], dtype=torch.float64)
    assert magnitude_counts([values])[0].tolist() == by_hand(values.numpy()).tolist()


def test_views_are_counted_as_they_are_seen() -> None:
    values = torch.randn(6, 8)
    for view in (values.T, values[::2, 1::3], values[0], values[0, 0], values.double().T, torch.zeros(0)):
        assert magnitude_counts([view])[0].tolist() == by_hand(view.numpy()).tolist()
