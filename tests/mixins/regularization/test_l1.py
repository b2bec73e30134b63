import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_tuning import EMATeacherMixin, L1Mixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit
from tests.numerics import array


class Net(L1Mixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, L1Mixin, Tiny):
    pass


class LossDict(Tiny):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "extra": 7}


class LossDictNet(L1Mixin, LossDict):
    pass


class Skips(Tiny):
    def training_step(self, batch, batch_idx):
        return None


class SkipsNet(L1Mixin, Skips):
    pass


def penalty(net):
    """By name: the matrices and kernels of the test's networks."""
    weights = [array(m.weight) for m in net.network.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    return sum(np.abs(w).sum() for w in weights)


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
def test_loss(network, shape):
    net = Net(network().eval(), l1_weight=0.03)
    x, ids = batches(1, shape=shape)[0]
    loss = net.training_step((x, ids), 0).item()
    assert loss == pytest.approx(F.cross_entropy(net.network(x), ids).item() + 0.03 * penalty(net), rel=1e-6)


def test_gradient_is_the_sign_of_the_weight_and_biases_have_none():
    net = Net(deep().eval(), l1_weight=0.03)
    x, ids = batches(1)[0]
    with torch.no_grad():
        net.network[0].weight[0, 0] = 0.0
    parameters = dict(net.network.named_parameters())
    ours = torch.autograd.grad(net.training_step((x, ids), 0), parameters.values())
    bare = torch.autograd.grad(F.cross_entropy(net.network(x), ids), parameters.values())
    for (name, p), with_penalty, without in zip(parameters.items(), ours, bare, strict=True):
        expected = 0.03 * np.sign(array(p)) if name in ("0.weight", "4.weight") else np.zeros(p.shape)
        np.testing.assert_allclose(array(with_penalty - without), expected, atol=1e-6, err_msg=name)


def test_frozen_weights_are_left_out():
    net = Net(deep().eval(), l1_weight=1.0)
    net.network[0].requires_grad_(False)
    x, ids = batches(1)[0]
    loss = net.training_step((x, ids), 0).item()
    expected = F.cross_entropy(net.network(x), ids).item() + np.abs(array(net.network[4].weight)).sum()
    assert loss == pytest.approx(expected, rel=1e-6)


def test_a_teacher_is_left_out():
    net = TaughtNet(l1_weight=1.0, ema_teacher_decay=0.9)
    net.configure_model()
    x, ids = batches(1)[0]
    loss = net.training_step((x, ids), 0).item()
    assert loss == pytest.approx(F.cross_entropy(net.network(x), ids).item() + penalty(net), rel=1e-6)


def test_the_term_is_recorded_without_its_weight():
    net = Net(l1_weight=0.5, lr=0.0)
    trainer = fit(net, batches(2))
    assert trainer.callback_metrics["train/l1_epoch"].item() == pytest.approx(penalty(net), rel=1e-6)


def test_what_training_step_returned_stays():
    net = LossDictNet(l1_weight=0.5)
    output = net.training_step(batches(1)[0], 0)
    assert output["extra"] == 7
    assert output["loss"].item() == pytest.approx(
        F.cross_entropy(net.logits[0], net.targets[0]).item() + 0.5 * penalty(net), rel=1e-6
    )
    assert SkipsNet(l1_weight=0.5).training_step(batches(1)[0], 0) is None


def test_off_adds_nothing():
    net = Net(l1_weight=0)
    x, ids = batches(1)[0]
    assert net.training_step((x, ids), 0).item() == F.cross_entropy(net.network(x), ids).item()


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(l1_weight=-1e-3)
    assert str(caught.value) == "l1_weight is -0.001; it must be a number in [0, inf)."
