"""The threshold of spikes, against numpy written out."""

import numpy as np
import pytest

from lightning_tuning.functional import spike_threshold


def test_mean_and_standard_deviation():
    values = np.random.default_rng(0).normal(3.0, 0.5, 40).tolist()
    mean = sum(values) / 40
    deviation = (sum((v - mean) ** 2 for v in values) / 40) ** 0.5
    assert spike_threshold(values, 6) == pytest.approx(mean + 6 * deviation, rel=1e-12)


def test_median_and_absolute_deviation_do_not_mind_outliers():
    values = [1.0, 1.1, 0.9, 1.2, 0.8, 50.0, 90.0]
    middle = 1.1
    distances = sorted(abs(v - middle) for v in values)
    assert spike_threshold(values, 3, robust=True) == pytest.approx(middle + 3 * 1.4826 * distances[3], rel=1e-12)
    assert spike_threshold([4.0, 1.0, 2.0, 9.0], 1, robust=True) == pytest.approx(3.0 + 1.4826 * 1.5)
    normal = np.random.default_rng(0).normal(0.0, 2.0, 100_001).tolist()
    assert spike_threshold(normal, 1, robust=True) == pytest.approx(2.0, rel=0.02)


def test_values_that_hardly_change_have_a_spread_of_one_percent():
    assert spike_threshold([5.0, 5.0, 5.0], 6) == pytest.approx(5.3)
    assert spike_threshold([-5.0, -5.0], 6, robust=True) == pytest.approx(-4.7)
    assert spike_threshold([0.0], 6) == 0.0
