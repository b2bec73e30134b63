import numpy as np
import pytest
import torch

from lightning_tuning.functional import l1_norm
from tests.numerics import array


def test_against_numpy():
    parameters = [torch.randn(shape, dtype=torch.float64) for shape in [(3, 4), (2, 3, 3, 3), (5,), ()]]
    expected = sum(np.abs(array(p)).sum() for p in parameters)
    assert l1_norm(parameters).item() == pytest.approx(expected, rel=1e-14)


def test_gradient_is_the_sign():
    parameters = [torch.tensor([[1.5, -2.0], [0.0, 3.0]], requires_grad=True), torch.tensor([-1.0], requires_grad=True)]
    l1_norm(parameters).backward()
    assert torch.equal(parameters[0].grad, torch.tensor([[1.0, -1.0], [0.0, 1.0]]))
    assert torch.equal(parameters[1].grad, torch.tensor([-1.0]))


def test_gradcheck():
    parameters = [torch.randn(3, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *p: l1_norm(p), parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype):
    parameter = torch.randn(100, 100).to(dtype).requires_grad_()
    norm = l1_norm([parameter])
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(np.abs(array(parameter)).sum(), rel=1e-5)
    norm.backward()
    assert torch.equal(parameter.grad, parameter.detach().sign())
