import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_tuning import ConfidencePenaltyMixin, LabelSmoothingMixin, MixupMixin, RDropMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, batches, convolution, deep, fit
from tests.numerics import array, cross_entropy, kl, one_hot, softmax


class Net(ConfidencePenaltyMixin, Tiny):
    pass


class Stacked(MixupMixin, RDropMixin, LabelSmoothingMixin, ConfidencePenaltyMixin, Tiny):
    pass


class Swapped(MixupMixin, RDropMixin, ConfidencePenaltyMixin, LabelSmoothingMixin, Tiny):
    pass


def entropy(logits):
    p = softmax(array(logits))
    return float(-(p * np.log(p)).sum(axis=1).mean())


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
def test_loss(network, shape):
    net = Net(network(), confidence_penalty_weight=0.4)
    x, ids = batches(1, shape=shape)[0]
    loss = net.training_step((x, ids), 0).item()
    logits = net.logits[0]
    task = cross_entropy(array(logits), one_hot(ids.numpy(), 3))
    assert loss == pytest.approx(task - 0.4 * entropy(logits), rel=1e-6)


def test_gradient_is_that_of_the_formula():
    """d(-H) / dz_c = p_c (log p_c + H), beside (p - y) of the cross entropy."""
    net = Net(confidence_penalty_weight=0.4)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 2, 0, 1])
    net.compute_loss(logits, ids).backward()
    p = softmax(array(logits))
    own_entropy = -(p * np.log(p)).sum(axis=1, keepdims=True)
    expected = (p - one_hot(ids.numpy(), 3) + 0.4 * p * (np.log(p) + own_entropy)) / 5
    np.testing.assert_allclose(array(logits.grad), expected, atol=1e-12)


def test_dense_prediction():
    net = Net(torch.nn.Conv2d(2, 3, 1), confidence_penalty_weight=0.4)
    x, ids = torch.randn(2, 2, 4, 4), torch.randint(3, (2, 4, 4))
    loss = net.training_step((x, ids), 0).item()
    assert loss == pytest.approx(F.cross_entropy(net(x), ids).item() - 0.4 * entropy(net(x)), rel=1e-5)


def test_it_makes_predictions_less_confident():
    entropies = []
    for weight in (0.0, 0.5):
        torch.manual_seed(0)
        net = Net(confidence_penalty_weight=weight)
        fit(net, batches(1) * 60)
        entropies.append(entropy(net(batches(1)[0][0])))
    assert entropies[1] > entropies[0] + 0.1


@pytest.mark.parametrize("cls", [Stacked, Swapped])
def test_in_a_stack_each_technique_adds_its_own(cls):
    net = cls(deep(), mixup_alpha=1.0, rdrop_weight=0.7, label_smoothing_epsilon=0.2, confidence_penalty_weight=0.4)
    loss = net.training_step(batches(1)[0], 0).item()
    logits, target = net.logits[0], array(net.targets[0])
    assert target.min() >= 0.2 / 3 - 1e-7
    first, second = (array(half) for half in logits.chunk(2))
    divergence = (kl(first, second) + kl(second, first)) / 2
    expected = cross_entropy(array(logits), target) - 0.4 * entropy(logits) + 0.7 * divergence
    assert loss == pytest.approx(expected, rel=1e-5)


def test_validation_is_plain():
    net = Net(confidence_penalty_weight=0.4)
    data = batches(2)
    trainer = fit(net, data, val_data=data[:1])
    expected = F.cross_entropy(net(data[0][0]), data[0][1]).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_the_term_is_recorded_without_its_weight():
    net = Net(confidence_penalty_weight=0.4, lr=0.0)
    data = batches(2)
    trainer = fit(net, data)
    expected = np.mean([entropy(net(x)) for x, _ in data])
    assert trainer.callback_metrics["train/confidence_penalty_epoch"].item() == pytest.approx(expected, rel=1e-6)


def test_off_subtracts_nothing():
    net = Net(confidence_penalty_weight=0.0)
    x, ids = batches(1)[0]
    assert net.training_step((x, ids), 0).item() == F.cross_entropy(net.network(x), ids).item()


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(confidence_penalty_weight=-0.1)
    assert str(caught.value) == "confidence_penalty_weight is -0.1; it must be a number in [0, inf)."


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_an_output_that_is_not_one_of_several_classes(shape):
    net = Net()
    with pytest.raises(InvalidValueError, match=r"ConfidencePenaltyMixin takes logits .* of two or more classes"):
        net.compute_loss(torch.randn(shape), torch.randn(shape))
