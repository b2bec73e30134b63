import numpy as np
import pytest
import torch

from lightning_tuning.functional import mix, sample_beta
from tests.numerics import array


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 2, 2), (6,)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.77])
def test_mix(shape, share):
    values, index = torch.randn(shape, dtype=torch.float64), torch.randperm(shape[0])
    given = array(values).copy()
    expected = share * given + (1 - share) * given[index.numpy()]
    np.testing.assert_allclose(array(mix(values, index, share)), expected, atol=1e-14)
    np.testing.assert_array_equal(array(values), given)


def test_share_one_is_the_identity_and_share_zero_the_partner():
    values, index = torch.randn(5, 3), torch.tensor([1, 2, 3, 4, 0])
    assert torch.equal(mix(values, index, 1.0), values)
    assert torch.equal(mix(values, index, 0.0), values[index])


def test_gradient():
    values = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: mix(v, torch.tensor([2, 0, 3, 1]), 0.3), values)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 5.0])
def test_moments_of_the_beta_distribution(alpha):
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); five standard errors of 4000 draws."""
    draws = np.array([sample_beta(alpha) for _ in range(4000)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert draws.mean() == pytest.approx(0.5, abs=5 * np.sqrt(variance / 4000))
    assert draws.var() == pytest.approx(variance, rel=0.12)
    assert draws.min() >= 0
    assert draws.max() <= 1


@pytest.mark.parametrize("alpha", [1e-6, 1e-3, 1e6])
def test_extreme_parameters_give_numbers_between_0_and_1(alpha):
    assert all(0 <= sample_beta(alpha) <= 1 for _ in range(300))


def test_it_draws_from_torchs_default_generator():
    state = torch.get_rng_state()
    first, second = sample_beta(0.3), sample_beta(0.3)
    assert first != second
    torch.set_rng_state(state)
    assert sample_beta(0.3) == first
