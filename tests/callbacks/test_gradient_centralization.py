"""GradientCentralization against means taken in numpy."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import SAMMixin
from lightning_tuning.callbacks import GradientCentralization
from lightning_tuning.errors import NoEffectError
from lightning_tuning.functional import centralize_
from tests.mixins.tiny import Tiny, batches, convolution, fit, linear, smooth
from tests.numerics import array

from .reference import train


def centered(gradient):
    if gradient.ndim < 2:
        return gradient
    rows = gradient.reshape(len(gradient), -1)
    return (rows - rows.sum(1, keepdims=True) / rows.shape[1]).reshape(gradient.shape)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_units_mean_is_taken_off(dtype):
    shapes = [(3, 4), (2, 5, 3), (4, 3, 2, 2), (1, 1)]
    gradients = [torch.randn(shape, dtype=dtype) + 1 for shape in shapes]
    expected = [centered(array(g)) for g in gradients]
    centralize_(gradients)
    for gradient, by_hand in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(array(gradient), by_hand, atol=1e-12 if dtype == torch.float64 else 1e-6)


def test_channels_last_is_the_same():
    gradient = torch.randn(4, 3, 2, 2)
    last = gradient.clone(memory_format=torch.channels_last)
    centralize_([gradient])
    centralize_([last])
    torch.testing.assert_close(last, gradient)
    assert last.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("conv_only", [False, True])
def test_a_run_is_the_reference_loop(clip, conv_only):
    """Before clipping, and only where there are enough dimensions."""
    network, data = convolution().double(), batches(5, shape=(2, 5, 5), dtype=torch.float64)
    network[4].p = 0.0
    net, least = Tiny(copy.deepcopy(network)), 3 if conv_only else 2
    fit(net, data, callbacks=[GradientCentralization(conv_only)], precision="64-true", gradient_clip_val=clip)
    train(network, data, lambda g, w: {n: centered(v) if v.ndim >= least else v for n, v in g.items()}, clip=clip)
    for a, b in zip(net.network.parameters(), network.parameters(), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-9, atol=1e-12)


def test_the_sum_into_each_unit_stays_as_it_began():
    network = smooth().double()
    before = copy.deepcopy(network)
    net = Tiny(network)
    fit(net, batches(6, dtype=torch.float64), callbacks=[GradientCentralization()], precision="64-true")
    for i in (0, 2):
        assert not torch.allclose(network[i].weight, before[i].weight)
        torch.testing.assert_close(network[i].weight.sum(1), before[i].weight.sum(1), rtol=1e-12, atol=1e-12)
        assert not torch.allclose(network[i].bias, before[i].bias)


class SharpNet(SAMMixin, Tiny):
    pass


def test_with_sam_the_second_gradient_is_centralized_and_the_ascent_is_not():
    network, data, rho = linear().double(), batches(1, dtype=torch.float64), 0.5
    net = SharpNet(copy.deepcopy(network), lr=1.0, momentum=0.0, sam_rho=rho)
    fit(net, data, callbacks=[GradientCentralization()], precision="64-true")

    def gradients(weights):
        copied = copy.deepcopy(network)
        for p, w in zip(copied.parameters(), weights, strict=True):
            p.data = torch.from_numpy(w)
        loss = F.cross_entropy(copied(data[0][0]), data[0][1])
        return [array(g) for g in torch.autograd.grad(loss, copied.parameters())]

    weights = [array(p) for p in network.parameters()]
    first = gradients(weights)
    norm = np.sqrt(sum((g**2).sum() for g in first))
    second = gradients([w + rho * g / norm for w, g in zip(weights, first, strict=True)])
    for after, w, g in zip(net.network.parameters(), weights, second, strict=True):
        np.testing.assert_allclose(array(after), w - centered(g), rtol=1e-10)


@pytest.mark.parametrize(
    ("network", "conv_only", "message"),
    [
        (nn.BatchNorm1d(4), False, "trains no parameter of two or more dimensions"),
        (smooth(), True, r"trains no parameter of three or more dimensions \(conv_only is true\)"),
    ],
)
def test_a_model_without_such_parameters_is_refused(network, conv_only, message):
    with pytest.raises(NoEffectError, match=f"GradientCentralization would do nothing: Tiny {message}"):
        fit(Tiny(network), batches(1), callbacks=[GradientCentralization(conv_only)])


def test_conv_only_counts_one_dimensional_convolutions_as_convolutions():
    layers = [nn.Conv1d(2, 3, 3), nn.Conv2d(2, 3, 3), nn.Linear(2, 3), nn.BatchNorm2d(3)]
    for conv_only, chosen in [(True, [True, True, False, False]), (False, [True, True, True, False])]:
        assert [GradientCentralization(conv_only)._acts_on(layer.weight) for layer in layers] == chosen
