import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, L1Mixin, L2Mixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit, smooth
from tests.numerics import array


class Net(L2Mixin, Tiny):
    pass


class ElasticNet(L1Mixin, L2Mixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, L2Mixin, Tiny):
    pass


def matrices(net):
    """By type: the matrices and kernels of the test's networks."""
    return [m.weight for m in net.network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]


def penalty(weights):
    return sum((array(w) ** 2).sum() for w in weights) / 2


def task_loss(net, batch):
    return F.cross_entropy(net.network(batch[0]), batch[1]).item()


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
def test_loss(network, shape):
    net = Net(network().eval(), l2_weight=0.03)
    batch = batches(1, shape=shape)[0]
    loss = net.training_step(batch, 0).item()
    assert loss == pytest.approx(task_loss(net, batch) + 0.03 * penalty(matrices(net)), rel=1e-6)


def test_gradient_is_the_weight_and_biases_have_none():
    net = Net(deep().eval(), l2_weight=0.3)
    x, ids = batches(1)[0]
    parameters = dict(net.network.named_parameters())
    ours = torch.autograd.grad(net.training_step((x, ids), 0), parameters.values())
    bare = torch.autograd.grad(F.cross_entropy(net.network(x), ids), parameters.values())
    for (name, p), with_penalty, without in zip(parameters.items(), ours, bare, strict=True):
        expected = 0.3 * array(p) if name in ("0.weight", "4.weight") else np.zeros(p.shape)
        np.testing.assert_allclose(array(with_penalty - without), expected, atol=1e-6, err_msg=name)


def test_with_l1_it_is_the_elastic_net():
    net = ElasticNet(deep().eval(), l1_weight=0.02, l2_weight=0.3)
    batch = batches(1)[0]
    absolute = sum(np.abs(array(w)).sum() for w in matrices(net))
    expected = task_loss(net, batch) + 0.02 * absolute + 0.3 * penalty(matrices(net))
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)


class Decayed(Tiny):
    """The optimizer's own weight decay, on the matrices."""

    optimizer, decay = torch.optim.SGD, 0.0

    def configure_optimizers(self):
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": self.decay}, {"params": others, "weight_decay": 0.0}]
        return self.optimizer(groups, lr=0.02)


class PenalizedNet(L2Mixin, Decayed):
    pass


@pytest.mark.parametrize(
    ("optimizer", "equal"), [(torch.optim.SGD, True), (torch.optim.Adam, True), (torch.optim.AdamW, False)]
)
def test_it_is_the_weight_decay_of_torch_that_goes_through_the_gradient(optimizer, equal):
    """Of SGD and Adam, but not the decoupled one of AdamW."""
    network = smooth().double()
    penalized, decayed = PenalizedNet(l2_weight=0.1), Decayed()
    for net, decay in [(penalized, 0.0), (decayed, 0.1)]:
        net.optimizer, net.decay, net.network = optimizer, decay, smooth().double()
        net.network.load_state_dict(network.state_dict())
        fit(net, batches(6, dtype=torch.float64), precision="64-true")
    gaps = [(array(a) - array(b)) for a, b in zip(penalized.parameters(), decayed.parameters(), strict=True)]
    gap = max(np.abs(g).max() for g in gaps)
    assert gap < 1e-12 if equal else gap > 1e-3


def test_what_is_frozen_at_the_moment_is_left_out():
    net = Net(deep().eval(), l2_weight=1.0)
    batch = batches(1)[0]
    for frozen in (True, False):
        net.network[0].requires_grad_(not frozen)
        weights = matrices(net)[1:] if frozen else matrices(net)
        assert net.training_step(batch, 0).item() == pytest.approx(task_loss(net, batch) + penalty(weights), rel=1e-6)


def test_a_layer_that_comes_later_is_found():
    net = Net(smooth(), l2_weight=1.0)
    batch = batches(1)[0]
    net.training_step(batch, 0)
    net.network.append(nn.Linear(3, 3))
    assert len(matrices(net)) == 3
    expected = task_loss(net, batch) + penalty(matrices(net))
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)


def test_a_teacher_is_left_out():
    net = TaughtNet(l2_weight=1.0, ema_teacher_decay=0.9)
    net.configure_model()
    batch = batches(1)[0]
    expected = task_loss(net, batch) + penalty(matrices(net))
    assert net.training_step(batch, 0).item() == pytest.approx(expected, rel=1e-6)


def test_the_term_is_recorded_without_its_weight():
    net = Net(l2_weight=0.5, lr=0.0)
    trainer = fit(net, batches(2))
    assert trainer.callback_metrics["train/l2_epoch"].item() == pytest.approx(penalty(matrices(net)), rel=1e-6)


def test_validation_is_plain():
    net = Net(l2_weight=0.5)
    data = batches(2)
    trainer = fit(net, data, val_data=data[:1])
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(task_loss(net, data[0]))


def test_off_adds_nothing():
    net = Net(l2_weight=0)
    batch = batches(1)[0]
    assert net.training_step(batch, 0).item() == task_loss(net, batch)


def test_nothing_to_penalize():
    net = Net(l2_weight=1.0)
    net.network.weight.requires_grad_(False)
    with pytest.raises(NoEffectError) as caught:
        fit(net, batches(1))
    assert str(caught.value) == (
        "L2Mixin is on but can change nothing: Tiny has no trainable parameter of two or more dimensions. All may be "
        "frozen. Mend that, or switch it off: l2_weight=0.0."
    )


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(l2_weight=-1e-3)
    assert str(caught.value) == "l2_weight is -0.001; it must be a number in [0, inf)."
