import numpy as np
import pytest
import torch

from lightning_tuning.functional import half_squared_distance, half_squared_norm, l1_norm
from tests.numerics import array

SHAPES = [(3, 4), (2, 3, 3, 3), (5,), ()]


def distance_to_ones(parameters):
    return half_squared_distance(parameters, [torch.ones_like(p) for p in parameters])


PENALTIES = {
    l1_norm: (lambda w: np.abs(w).sum(), np.sign),
    half_squared_norm: (lambda w: (w * w).sum() / 2, lambda w: w),
    distance_to_ones: (lambda w: ((w - 1) ** 2).sum() / 2, lambda w: w - 1),
}
"""The value of one array and its gradient, in numpy."""
each = pytest.mark.parametrize("penalty", PENALTIES)


def random_parameters(dtype=torch.float64):
    return [torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in SHAPES]


@each
def test_value_and_gradient_against_numpy(penalty):
    value, gradient = PENALTIES[penalty]
    parameters = random_parameters()
    ours = penalty(parameters)
    ours.backward()
    assert ours.item() == pytest.approx(sum(value(array(p)) for p in parameters), rel=1e-14)
    for p in parameters:
        np.testing.assert_allclose(array(p.grad), gradient(array(p)), rtol=1e-14)


def test_the_gradient_of_l1_is_0_at_0():
    parameters = [torch.tensor([[1.5, -2.0], [0.0, 3.0]], requires_grad=True), torch.tensor([-1.0], requires_grad=True)]
    l1_norm(parameters).backward()
    assert torch.equal(parameters[0].grad, torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
    assert torch.equal(parameters[1].grad, torch.tensor([-1.0]))


@pytest.mark.parametrize("penalty", [half_squared_norm, lambda p: half_squared_distance(p, [x.detach() for x in p])])
def test_at_its_minimum_a_square_is_0_and_its_gradient_too(penalty):
    """The norm it is computed by has no gradient there."""
    parameters = [torch.zeros(3, 2, requires_grad=True), torch.zeros(4, requires_grad=True)]
    value = penalty(parameters)
    value.backward()
    assert value.item() == 0
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in parameters)


@each
def test_gradcheck(penalty):
    assert torch.autograd.gradcheck(lambda *p: penalty(p), random_parameters())
    assert torch.autograd.gradgradcheck(lambda *p: 0.3 * penalty(p) ** 2, random_parameters())


@each
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(penalty, dtype):
    value, gradient = PENALTIES[penalty]
    parameter = torch.randn(100, 100).to(dtype).requires_grad_()
    ours = penalty([parameter])
    assert ours.dtype == torch.float32
    # The difference of two bf16 numbers is rounded to bf16.
    assert ours.item() == pytest.approx(value(array(parameter)), rel=1e-3 if penalty is distance_to_ones else 1e-5)
    ours.backward()
    expected = torch.from_numpy(gradient(array(parameter))).to(dtype)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-2, atol=1e-2)
