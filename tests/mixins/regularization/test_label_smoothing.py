import pytest
import torch
import torch.nn.functional as F

from lightning_tuning import LabelSmoothingMixin, MixupMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, batches, convolution, fit
from tests.numerics import array, cross_entropy, one_hot


class Net(LabelSmoothingMixin, Tiny):
    pass


class MixedNet(MixupMixin, LabelSmoothingMixin, Tiny):
    pass


@pytest.mark.parametrize("epsilon", [0.1, 0.4, 1.0])
def test_loss_is_torchs_and_numpys(epsilon):
    net = Net(label_smoothing_epsilon=epsilon).double()
    x, ids = batches(1, dtype=torch.float64)[0]
    loss = net.training_step((x, ids), 0)
    logits = net.network(x)
    assert loss.item() == pytest.approx(F.cross_entropy(logits, ids, label_smoothing=epsilon).item(), abs=1e-7)
    smoothed = (1 - epsilon) * one_hot(ids.numpy(), 3) + epsilon / 3
    assert loss.item() == pytest.approx(cross_entropy(array(logits), smoothed), abs=1e-7)


def test_gradient_is_torchs():
    net = Net(convolution().eval(), label_smoothing_epsilon=0.2)
    x, ids = batches(1, shape=(2, 5, 5))[0]
    ours = torch.autograd.grad(net.training_step((x, ids), 0), net.network.parameters())
    torchs = torch.autograd.grad(F.cross_entropy(net.network(x), ids, label_smoothing=0.2), net.network.parameters())
    torch.testing.assert_close(ours, torchs, rtol=1e-5, atol=1e-7)


def test_dense_prediction():
    net = Net(torch.nn.Conv2d(2, 3, 1), label_smoothing_epsilon=0.3)
    x, ids = torch.randn(2, 2, 4, 4), torch.randint(3, (2, 4, 4))
    loss = net.training_step((x, ids), 0)
    assert loss.item() == pytest.approx(F.cross_entropy(net(x), ids, label_smoothing=0.3).item(), abs=1e-6)


def test_probabilities_are_smoothed_too():
    net = Net(label_smoothing_epsilon=0.3)
    probabilities = torch.tensor([[0.7, 0.3, 0.0]])
    net.compute_loss(torch.randn(1, 3), probabilities)
    torch.testing.assert_close(net.targets[0], 0.7 * probabilities + 0.1)


def test_it_smooths_the_targets_that_mixup_made():
    net = MixedNet(mixup_alpha=1.0, label_smoothing_epsilon=0.3)
    plain = MixedNet(mixup_alpha=1.0, label_smoothing_epsilon=0.0)
    x, ids = batches(1)[0]
    for module in (net, plain):
        torch.manual_seed(3)
        module.training_step((x, ids), 0)
    assert not torch.equal(plain.targets[0], F.one_hot(ids, 3).float())
    torch.testing.assert_close(net.targets[0], 0.7 * plain.targets[0] + 0.1)


def test_validation_sees_the_targets_as_they_are():
    net = Net(label_smoothing_epsilon=0.3)
    data = batches(2)
    trainer = fit(net, data, val_data=data[:1])
    training, validation = [t.is_floating_point() for t in net.targets[1:3]], net.targets[-1]
    assert training == [True, True]
    assert validation is data[0][1]
    expected = F.cross_entropy(net(data[0][0]), data[0][1]).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_off_hands_on_the_very_target():
    net = Net(label_smoothing_epsilon=0.0)
    batch = batches(1)[0]
    net.training_step(batch, 0)
    assert net.targets[0] is batch[1]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1])
def test_a_value_out_of_range(epsilon):
    with pytest.raises(InvalidValueError) as caught:
        Net(label_smoothing_epsilon=epsilon)
    assert str(caught.value) == f"label_smoothing_epsilon is {epsilon}; it must be a number in [0, 1]."


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_an_output_that_is_not_one_of_several_classes(shape):
    net = Net()
    with pytest.raises(InvalidValueError, match=r"LabelSmoothingMixin takes logits .* of two or more classes"):
        net.compute_loss(torch.randn(shape), torch.randn(shape))
