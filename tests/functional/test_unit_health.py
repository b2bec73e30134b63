"""Which inputs count as off, which outputs as saturated, against the activations themselves in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning.functional import idle_units, moments, off_below, run_lengths, saturated

OFF = [
    *(nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish()),
    *(nn.Softplus(), nn.Softplus(3.0), nn.Softplus(0.5)),
]


def slope_and_value(layer, x):
    x = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    return slope.abs().numpy(), y.detach().abs().numpy()


@pytest.mark.parametrize("layer", OFF, ids=repr)
def test_at_and_below_the_floor_slope_and_value_are_next_to_zero_and_soon_above_it_not(layer):
    floor = off_below(layer)
    slope, value = slope_and_value(layer, np.linspace(floor - 20, floor, 2001))
    assert slope.max() <= 0.01 + 1e-12
    assert value.max() <= 0.01 + 1e-12
    slope, value = slope_and_value(layer, np.linspace(floor + 1e-6, floor + 0.2, 50))
    assert max(slope.max(), value.max()) > 0.01


@pytest.mark.parametrize("layer", [nn.LeakyReLU(), nn.PReLU(), nn.ELU(), nn.Tanh(), nn.Sigmoid(), nn.Identity()])
def test_others_are_off_nowhere(layer):
    assert off_below(layer) is None


SATURATED = [
    (nn.Tanh(), [0.0, 2.0, -2.0, 2.2, -2.2], [0, 0, 0, 1, 1]),  # tanh(2.092) = 0.97
    (nn.Sigmoid(), [0.0, 3.4, -3.4, 3.5, -3.5], [0, 0, 0, 1, 1]),  # sigmoid(3.476) = 0.97
    (nn.Softsign(), [0.0, 32.0, -32.0, 33.0, -33.0], [0, 0, 0, 1, 1]),  # 32.33 / 33.33 = 0.97
    (nn.ReLU6(), [-1.0, 0.0, 5.9, 6.0, 7.0], [0, 0, 0, 1, 1]),
    (nn.Hardtanh(-2, 1), [-2.5, -2.0, 0.0, 0.9, 1.0], [1, 1, 0, 0, 1]),
    (nn.Hardsigmoid(), [-3.1, -2.9, 0.0, 2.9, 3.0], [1, 0, 0, 0, 1]),
    (nn.ELU(2.0), [-3.4, -3.6, 5.0], [0, 1, 0]),  # exp(-3.507) = 0.03
    (nn.CELU(2.0), [-6.9, -7.1, 5.0], [0, 1, 0]),
    (nn.SELU(), [-3.4, -3.6, 5.0], [0, 1, 0]),
]


@pytest.mark.parametrize(
    ("layer", "x", "expected"), SATURATED, ids=lambda v: repr(v) if isinstance(v, nn.Module) else ""
)
def test_saturated_ends(layer, x, expected):
    assert saturated(layer, layer(torch.tensor(x, dtype=torch.float64))).int().tolist() == expected


@pytest.mark.parametrize("layer", [nn.Softmax(-1), nn.LogSoftmax(-1)])
def test_a_softmax_is_saturated_where_one_probability_is_next_to_1(layer):
    odds = torch.tensor([[0.96, 0.02, 0.02], [0.98, 0.01, 0.01], [0.01, 0.01, 0.98]], dtype=torch.float64)
    assert saturated(layer, layer(odds.log())).tolist() == [False, True, True]


@pytest.mark.parametrize("layer", [nn.ReLU(), nn.GELU(), nn.LeakyReLU(), nn.Linear(2, 2)])
def test_others_have_no_ends(layer):
    assert saturated(layer, torch.zeros(2, 2)) is None


@pytest.mark.parametrize(("shape", "dim"), [((5, 3), 1), ((5, 3, 4), 1), ((5, 4, 3), -1), ((5, 3, 2, 2), 1)])
def test_a_unit_is_idle_if_no_sample_and_no_position_switches_it_on(shape, dim):
    values = -torch.rand(shape)
    values.select(dim, 1)[(-1,) * (len(shape) - 1)] = 0.25
    assert idle_units(values, 0.0, dim).tolist() == [True, False, True]
    assert idle_units(values, 0.25, dim).tolist() == [True, True, True]
    assert idle_units(values, None, dim).tolist() == [False, False, False]
    values.select(dim, 2).zero_()
    assert idle_units(values, None, dim).tolist() == [False, False, True]
    values.select(dim, 0)[...] = math.nan
    assert idle_units(values, 0.0, dim).tolist() == [False, False, True]


@pytest.mark.parametrize("shape", [(6, 5), (6, 4, 5), (6, 2, 3, 3)])
def test_moments_are_those_of_numpy(shape):
    values = np.random.default_rng(0).normal(3.0, 1.0, shape) * np.arange(1.0, 1 + shape[-1])
    without_mean = values - values.mean(0)
    variation = math.sqrt((without_mean**2).mean() / (values**2).mean())
    expected = [values.mean(), values.std(), variation]
    assert [x.item() for x in moments(torch.tensor(values))] == pytest.approx(expected, rel=1e-12)


def test_moments_of_what_does_not_depend_on_the_sample():
    row = torch.tensor([1.0, 2.0, 6.0])
    for values in (row.repeat(4, 1), row[None]):
        mean, std, variation = moments(values)
        assert (mean.item(), std.item()) == pytest.approx((3.0, math.sqrt(14 / 3)))
        assert variation.item() == 0 if len(values) > 1 else math.isnan(variation.item())
    assert math.isnan(moments(torch.zeros(6, 4))[2].item())
    small = 1.0 + 1e-4 * torch.randn(500, 20, generator=torch.Generator().manual_seed(0))
    assert moments(small)[2].item() == pytest.approx(1e-4, rel=0.03)  # no difference of large numbers
    assert not any(math.isfinite(x.item()) for x in moments(torch.tensor([[1.0, math.nan], [1.0, 1.0]])))


def test_run_lengths_count_looks_in_a_row():
    looks = [[True, True, False], [True, False, True], [True, True, True]]
    lengths = None
    for idle in looks:
        lengths = run_lengths(lengths, torch.tensor(idle))
    assert lengths.tolist() == [3, 1, 2]
    assert run_lengths(lengths, torch.tensor([True, False])).tolist() == [1, 0]  # another layer of that name
