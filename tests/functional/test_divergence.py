import math

import numpy as np
import pytest
import torch

from lightning_tuning.functional import kl_divergence, symmetric_kl_divergence
from tests.numerics import array, kl

SHAPES = [(5, 3), (2, 4, 3, 2)]


def logits_of(*rows):
    return torch.tensor(rows, dtype=torch.float64).log()


def test_kl_golden_value_and_direction():
    p, q = logits_of([0.7, 0.2, 0.1]), logits_of([0.1, 0.3, 0.6])
    p_q = 0.7 * math.log(7) + 0.2 * math.log(2 / 3) + 0.1 * math.log(1 / 6)
    q_p = 0.1 * math.log(1 / 7) + 0.3 * math.log(3 / 2) + 0.6 * math.log(6)
    assert abs(p_q - q_p) > 0.09
    assert kl_divergence(p, q).item() == pytest.approx(p_q, abs=1e-12)
    assert kl_divergence(q, p).item() == pytest.approx(q_p, abs=1e-12)
    assert symmetric_kl_divergence(p, q).item() == pytest.approx((p_q + q_p) / 2, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(shape):
    p, q = 3 * torch.randn(2, *shape, dtype=torch.float64)
    assert kl_divergence(p, q).item() == pytest.approx(kl(array(p), array(q)), abs=1e-12)
    symmetric = (kl(array(p), array(q)) + kl(array(q), array(p))) / 2
    assert symmetric_kl_divergence(p, q).item() == pytest.approx(symmetric, abs=1e-12)


@pytest.mark.parametrize("function", [kl_divergence, symmetric_kl_divergence])
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_both_arguments(function, shape):
    p, q = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.autograd.gradcheck(function, (p.requires_grad_(), q.requires_grad_()))


def test_gradient_golden_value():
    """With respect to the second logits it is (q - p) / N, with respect to the first it is not p - q."""
    p, q = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    p, q = p.detach().requires_grad_(), q.detach().requires_grad_()
    by_p, by_q = torch.autograd.grad(kl_divergence(p, q), (p, q))
    np.testing.assert_allclose(array(by_q), array(q.softmax(1) - p.softmax(1)) / 4, atol=1e-12)
    assert not np.allclose(array(by_p), -array(by_q), atol=1e-3)


@pytest.mark.parametrize("function", [kl_divergence, symmetric_kl_divergence])
def test_equal_distributions_are_at_zero_with_zero_gradient(function):
    p = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    value = function(p, p.detach() + 2.0)  # a constant added to all logits changes no probability
    assert abs(value.item()) < 1e-14
    assert torch.autograd.grad(value, p)[0].abs().max() < 1e-14


@pytest.mark.parametrize("function", [kl_divergence, symmetric_kl_divergence])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(function, dtype):
    p, q = torch.randn(2, 64, 10, dtype=torch.float64).to(dtype)
    value = function(p, q)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(function(p.double(), q.double()).item(), rel=1e-6)


@pytest.mark.parametrize("function", [kl_divergence, symmetric_kl_divergence])
def test_impossible_classes_stay_finite(function):
    """A class of probability 0 (its softmax underflows) contributes 0 * log 0 = 0."""
    p = torch.tensor([[200.0, 0.0]], requires_grad=True)
    q = torch.tensor([[0.0, 0.0]])
    value = kl_divergence(p, q)
    assert value.item() == pytest.approx(math.log(2))
    assert torch.isfinite(torch.autograd.grad(value, p)[0]).all()
