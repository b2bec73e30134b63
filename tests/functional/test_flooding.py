import pytest
import torch

from lightning_tuning.functional import flood


@pytest.mark.parametrize(("loss", "flooded", "slope"), [(1.0, 1.0, 1), (0.3, 0.3, 0), (0.1, 0.5, -1), (-0.2, 0.8, -1)])
def test_value_and_gradient(loss, flooded, slope):
    x = torch.tensor(loss, dtype=torch.float64, requires_grad=True)
    value = flood(x, 0.3)
    value.backward()
    assert value.item() == pytest.approx(flooded, abs=1e-15)
    assert x.grad.item() == slope


def test_gradcheck():
    losses = torch.tensor([1.0, 0.1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: flood(x.mean(), 0.3), losses)
    assert torch.autograd.gradcheck(lambda x: flood(x.mean(), 0.8), losses)


def test_a_half_precision_loss_is_flooded_in_float32():
    value = flood(torch.tensor(0.01, dtype=torch.bfloat16), 1.0)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(1.99, abs=1e-4)
