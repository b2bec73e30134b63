import numpy as np
import pytest
import torch

from lightning_tuning.functional import sigmoid_focal, softmax_focal
from tests.numerics import array, softmax

SHAPES = [(5, 3), (2, 4, 3, 2)]
GAMMAS = [0.0, 0.5, 2.0]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def a_target(shape):
    return torch.rand(shape, dtype=torch.float64)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_softmax_form_against_numpy(shape, gamma):
    logits, target = 3 * torch.randn(shape, dtype=torch.float64), a_target(shape).softmax(1)
    p = softmax(array(logits))
    expected = -array(target) * (1 - p) ** gamma * np.log(p)
    np.testing.assert_allclose(array(softmax_focal(logits, target, gamma)), expected, atol=1e-12)


@pytest.mark.parametrize("alpha", [None, 0.25])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_sigmoid_form_against_numpy(shape, gamma, alpha):
    logits, target = 3 * torch.randn(shape, dtype=torch.float64), a_target(shape)
    p, y = sigmoid(array(logits)), array(target)
    positive, negative = (1.0, 1.0) if alpha is None else (alpha, 1 - alpha)
    expected = -positive * y * (1 - p) ** gamma * np.log(p) - negative * (1 - y) * p**gamma * np.log(1 - p)
    np.testing.assert_allclose(array(sigmoid_focal(logits, target, gamma, alpha)), expected, atol=1e-12)


@pytest.mark.parametrize("function", [softmax_focal, sigmoid_focal])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_of_logits_and_target(function, gamma, shape):
    logits, target = torch.randn(shape, dtype=torch.float64, requires_grad=True), a_target(shape).requires_grad_()
    assert torch.autograd.gradcheck(lambda z, y: function(z, y, gamma), (logits, target))


@pytest.mark.parametrize("function", [softmax_focal, sigmoid_focal])
def test_a_sure_right_answer_keeps_its_digits(function):
    """1 - p is 2e-9, of which 1 - float32(p) would leave nothing: with gamma below 1 the gradient would be infinite."""
    low = torch.tensor([[20.0, 0.0]]) if function is softmax_focal else torch.tensor([[20.0]])
    gradients = []
    for dtype in (torch.float32, torch.float64):
        logits = low.to(dtype).requires_grad_()
        # Weighed against a wrong answer, so that log p is not the factor that has no digits.
        value = function(logits, torch.full_like(logits, 0.5), 0.5).sum()
        gradients.append(torch.autograd.grad(value, logits)[0].double())
    assert gradients[0].isfinite().all()
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("function", [softmax_focal, sigmoid_focal])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_extreme_logits_are_finite_in_value_and_gradient(function, gamma, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], dtype=dtype).requires_grad_()
    for target in (torch.eye(3), torch.ones(3, 3), torch.zeros(3, 3)):
        value = function(logits, target, gamma)
        assert value.dtype == torch.float32
        assert value.isfinite().all()
        assert torch.autograd.grad(value.sum(), logits)[0].isfinite().all()


def test_a_missed_class_costs_its_logit_and_a_found_one_nothing():
    logits = torch.tensor([[1e4, -1e4]])
    assert softmax_focal(logits, torch.tensor([[0.0, 1.0]]), 2.0).sum() == pytest.approx(2e4)
    assert softmax_focal(logits, torch.tensor([[1.0, 0.0]]), 2.0).sum() == 0
    assert sigmoid_focal(logits, torch.tensor([[0.0, 1.0]]), 2.0).tolist() == [[1e4, 1e4]]
    assert sigmoid_focal(logits, torch.tensor([[1.0, 0.0]]), 2.0).tolist() == [[0.0, 0.0]]
