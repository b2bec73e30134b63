import numpy as np
import pytest
import torch

from lightning_tuning.functional import max_norm_, power_iteration, spectral_norm
from tests.numerics import array


def matrix(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def test_max_norm_against_numpy():
    weights = [matrix(6, 4), matrix(5, 2, 3, 3, seed=1), 0.1 * matrix(3, 4, seed=2)]
    expected = []
    for w in map(array, weights):
        rows = w.reshape(len(w), -1).copy()
        for row in rows:
            length = np.sqrt((row**2).sum())
            if length > 1.7:
                row *= 1.7 / length
        expected.append(rows.reshape(w.shape))
    assert any((e != array(w)).any() for e, w in zip(expected, weights, strict=True))
    max_norm_(weights, 1.7)
    for w, e in zip(weights, expected, strict=True):
        np.testing.assert_allclose(array(w), e, rtol=1e-14)


def test_what_is_within_the_bound_stays_bitwise_and_zeros_stay_zeros():
    weight = torch.tensor([[0.6, 0.8], [0.3, 0.1], [0.0, 0.0], [6.0, 8.0]])
    before = weight.clone()
    max_norm_([weight], 1.5)
    assert torch.equal(weight[:3], before[:3])
    torch.testing.assert_close(weight[3], torch.tensor([0.9, 1.2]))


def test_a_norm_beyond_the_range_of_fp16():
    weight = torch.full((1, 9), 30_000.0, dtype=torch.float16)
    max_norm_([weight], 1.5)
    torch.testing.assert_close(weight, torch.full((1, 9), 0.5, dtype=torch.float16), rtol=1e-2, atol=0)


@pytest.mark.parametrize("shape", [(5, 8), (8, 5)])
def test_sigma_is_the_largest_singular_value(shape):
    w = matrix(*shape)
    u, s, vt = np.linalg.svd(array(w))
    found = power_iteration(w, matrix(shape[0], seed=3), 2000)
    assert abs(array(found) @ u[:, 0]) == pytest.approx(1, abs=1e-12)
    w.requires_grad_()
    for scale in (1.0, 0.01, -3.0):  # a teacher's is an average, of another length
        sigma = spectral_norm(w, scale * found)
        assert sigma.item() == pytest.approx(s[0], rel=1e-12)
        (gradient,) = torch.autograd.grad(sigma, w)
        np.testing.assert_allclose(array(gradient), np.outer(u[:, 0], vt[0]), atol=1e-7)


def test_any_other_vector_gives_too_little():
    w = matrix(5, 8)
    largest = np.linalg.svd(array(w))[1][0]
    for seed in range(20):
        assert spectral_norm(w, matrix(5, seed=seed)).item() < largest


def test_one_iteration_written_out():
    w, u = matrix(4, 6), matrix(4, seed=1)
    a, b = array(w), array(u)
    v = a.T @ b / np.linalg.norm(a.T @ b)
    np.testing.assert_allclose(array(power_iteration(w, u)), a @ v / np.linalg.norm(a @ v), rtol=1e-13)


def test_gradcheck():
    w, u = matrix(4, 6).requires_grad_(), matrix(4, seed=1)
    assert torch.autograd.gradcheck(lambda m: spectral_norm(m, u), w)
