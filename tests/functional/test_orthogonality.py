import numpy as np
import pytest
import torch

from lightning_tuning.functional import orthogonality
from tests.numerics import array

SHAPES = [(3, 5), (5, 2), (4, 2, 3, 3), (12, 1, 3, 3), (4, 4)]


def weights(dtype=torch.float64):
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


def gap(w):
    """W W^T - I for the smaller side, and W laid so that its rows are that side."""
    m = w.reshape(len(w), -1)
    m = m if m.shape[0] <= m.shape[1] else m.T
    return m @ m.T - np.eye(len(m)), m


def test_value_and_gradient_against_numpy():
    parameters = weights()
    value = orthogonality(parameters)
    value.backward()
    assert value.item() == pytest.approx(sum((gap(array(p))[0] ** 2).sum() for p in parameters), rel=1e-13)
    for p in parameters:
        w = array(p).reshape(len(p), -1)
        # 4 (W W^T - I) W, which is 4 W (W^T W - I) too, whichever side is the smaller.
        np.testing.assert_allclose(array(p.grad).reshape(w.shape), 4 * (w @ w.T @ w - w), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    assert torch.autograd.gradcheck(lambda *p: 0.3 * orthogonality(list(p)), weights())
    assert torch.autograd.gradgradcheck(lambda *p: 0.3 * orthogonality(list(p)), weights())


@pytest.mark.parametrize("shape", [(3, 7), (7, 3), (4, 4)])
def test_an_orthogonal_matrix_costs_nothing(shape):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(max(shape), min(shape))))[0]
    matrix = torch.from_numpy(basis if shape[0] > shape[1] else basis.T.copy()).requires_grad_()
    assert matrix.shape == shape
    value = orthogonality([matrix])
    value.backward()
    assert value.item() < 1e-28
    assert matrix.grad.abs().max() < 1e-14


def test_it_is_the_larger_side_less_a_constant():
    """What the paper writes down, W^T W, differs from the smaller side by the difference of the sides."""
    w = array(weights()[0])
    larger = ((w.T @ w - np.eye(5)) ** 2).sum()
    assert orthogonality([torch.from_numpy(w)]).item() == pytest.approx(larger - 2)


def test_one_tensor_in_two_places_counts_twice():
    weight = weights()[0]
    orthogonality([weight, weight]).backward()
    single = weight.detach().clone().requires_grad_()
    orthogonality([single]).backward()
    torch.testing.assert_close(weight.grad, 2 * single.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_are_computed_in_float32(dtype):
    parameters = weights(dtype)
    expected = sum((gap(array(p))[0] ** 2).sum() for p in parameters)
    for p in (parameters, [p.detach().float().requires_grad_() for p in parameters]):
        with torch.autocast("cpu", torch.bfloat16):
            value = orthogonality(p)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected, rel=1e-5)
        value.backward()
        w = array(p[0])
        np.testing.assert_allclose(array(p[0].grad), 4 * (w @ w.T @ w - w), rtol=1e-2, atol=1e-2)
