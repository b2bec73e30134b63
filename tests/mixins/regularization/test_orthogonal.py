import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, OrthogonalMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit
from tests.numerics import array


class Net(OrthogonalMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, OrthogonalMixin, Tiny):
    pass


def penalty(net):
    total = 0.0
    for layer in net.network.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            w = array(layer.weight).reshape(len(layer.weight), -1)
            gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
            total += ((gram - np.eye(len(gram))) ** 2).sum()
    return total


def task_loss(net, batch):
    return F.cross_entropy(net.network(batch[0]), batch[1]).item()


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
def test_loss(network, shape):
    net = Net(network().eval(), orthogonal_weight=0.03)
    batch = batches(1, shape=shape)[0]
    expected = task_loss(net, batch) + 0.03 * penalty(net)
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)


def test_it_makes_the_rows_orthonormal():
    gaps = []
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        net = Net(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), orthogonal_weight=weight, lr=0.02)
        fit(net, batches(1) * 200)
        gaps.append(penalty(net))
    assert gaps[1] < 0.05 < gaps[0]


def test_frozen_weights_biases_and_a_teacher_are_left_out():
    net = TaughtNet(deep().eval(), orthogonal_weight=1.0, ema_teacher_decay=0.9)
    net.configure_model()
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == pytest.approx(task_loss(net, batch) + penalty(net), rel=1e-6)
    net.network[0].requires_grad_(False)
    w = array(net.network[4].weight)
    last = ((w @ w.T - np.eye(3)) ** 2).sum()
    assert net.training_step(batch, 0).item() == pytest.approx(task_loss(net, batch) + last, rel=1e-6)


def test_the_term_is_recorded_without_its_weight():
    net = Net(orthogonal_weight=0.5, lr=0.0)
    trainer = fit(net, batches(2))
    assert trainer.callback_metrics["train/orthogonal_epoch"].item() == pytest.approx(penalty(net), rel=1e-6)


def test_off_adds_nothing():
    net = Net(orthogonal_weight=0.0)
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == task_loss(net, batch)


def test_nothing_to_penalize():
    net = Net(orthogonal_weight=1.0)
    net.network.weight.requires_grad_(False)
    with pytest.raises(NoEffectError, match="Tiny has no trainable parameter of two or more dimensions"):
        fit(net, batches(1))


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(orthogonal_weight=-1.0)
    assert str(caught.value) == "orthogonal_weight is -1.0; it must be a number in [0, inf)."
