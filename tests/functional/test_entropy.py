import math

import pytest
import torch

from lightning_tuning.functional import entropy
from tests.numerics import array, softmax

SHAPES = [(5, 3), (2, 4, 3, 2)]


def test_golden_value():
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]], dtype=torch.float64).log() + 3.0
    first = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1))
    assert entropy(logits).item() == pytest.approx((first + 1.5 * math.log(2)) / 2, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(shape):
    logits = 3 * torch.randn(shape, dtype=torch.float64)
    p = softmax(array(logits))
    positions = logits.numel() / shape[1]
    expected = -sum(x * math.log(x) for x in p.ravel()) / positions
    assert entropy(logits).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient(shape):
    assert torch.autograd.gradcheck(entropy, torch.randn(shape, dtype=torch.float64, requires_grad=True))


def test_limits():
    """ln C for equal logits, where the gradient vanishes; 0 for a class that is sure, with a finite gradient."""
    equal = torch.full((4, 7), 2.0, dtype=torch.float64, requires_grad=True)
    value = entropy(equal)
    assert value.item() == pytest.approx(math.log(7), abs=1e-14)
    assert torch.autograd.grad(value, equal)[0].abs().max() < 1e-15
    sure = torch.tensor([[200.0, 0.0]], requires_grad=True)  # the second probability underflows
    value = entropy(sure)
    assert value.item() == 0
    assert torch.isfinite(torch.autograd.grad(value, sure)[0]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    logits = torch.randn(64, 10, dtype=torch.float64).to(dtype)
    value = entropy(logits)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(entropy(logits.double()).item(), rel=1e-6)
