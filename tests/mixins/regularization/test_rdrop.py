import pytest
import torch
import torch.nn.functional as F

from lightning_tuning import FixMatchMixin, LabelSmoothingMixin, MixupMixin, RDropMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, deep, fit, linear, parameters, streams
from tests.numerics import array, cross_entropy, kl, one_hot


class Net(RDropMixin, Tiny):
    pass


class Stacked(FixMatchMixin, MixupMixin, RDropMixin, LabelSmoothingMixin, Tiny):
    pass


def expected_loss(logits, ids, weight):
    """1/2 (CE1 + CE2) + weight 1/2 (KL12 + KL21)."""
    first, second = (array(half) for half in logits.chunk(2))
    target = one_hot(ids.numpy(), 3)
    cross_entropies = (cross_entropy(first, target) + cross_entropy(second, target)) / 2
    return cross_entropies + weight * (kl(first, second) + kl(second, first)) / 2


def inputs(kind):
    shape, network = ((2, 5, 5), convolution()) if kind == "image" else ((4,), deep())
    x, ids = batches(1, shape=shape)[0]
    if kind == "dict":
        mask = (torch.rand(8, 4) > 0.2).float()
        return network, {"features": x, "mask": mask, "language": "en"}, ids
    return network, x, ids


@pytest.mark.parametrize("kind", ["vector", "image", "dict"])
def test_loss_on_the_captured_logits(kind):
    network, x, ids = inputs(kind)
    net = Net(network, rdrop_weight=0.7)
    loss = net.training_step((x, ids), 0)
    logits = net.logits[0]
    assert logits.shape == (16, 3)
    assert not torch.equal(logits[:8], logits[8:])
    assert loss.item() == pytest.approx(expected_loss(logits, ids, 0.7), rel=1e-5)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_network_without_randomness_is_refused_at_the_first_step(precision):
    net = Net(convolution(), rdrop_weight=1.0)
    net.network[4].p = 0.0
    before = parameters(net)
    with pytest.raises(NoEffectError) as caught:
        fit(net, batches(2, shape=(2, 5, 5)), precision=precision)
    assert str(caught.value) == (
        "RDropMixin is on but can change nothing: two passes of the first batch agree, so Tiny has no active dropout. "
        "Give it dropout, or switch it off: rdrop_weight=0."
    )
    assert_same(before, parameters(net))
    net.network[4].p = 0.01
    fit(net, batches(2, shape=(2, 5, 5)), precision=precision)


def test_both_halves_are_the_same_samples():
    net = Net(rdrop_weight=1.0)
    x, ids = batches(1)[0]
    net.training_step((x, ids, "index"), 0)
    doubled, target, extra = net.batches[0]
    assert torch.equal(doubled, torch.cat([x, x]))
    assert torch.equal(target, torch.cat([ids, ids]))
    assert extra == "index"


def test_gradient_goes_to_both_halves():
    """Each half gets 1/N (p - y) / 2 of its cross entropy and its own gradient of the divergence."""
    net = Net(rdrop_weight=0.7)
    net._rdrop_doubled = True
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([0, 1, 2])
    net.compute_loss(logits, torch.cat([ids, ids])).backward()
    step = 1e-6
    for row in (0, 4):
        for column in range(3):
            moved = [logits.detach().clone(), logits.detach().clone()]
            moved[0][row, column] += step
            moved[1][row, column] -= step
            numeric = (expected_loss(moved[0], ids, 0.7) - expected_loss(moved[1], ids, 0.7)) / (2 * step)
            assert logits.grad[row, column].item() == pytest.approx(numeric, abs=1e-8)


def test_without_dropout_the_term_is_zero():
    net = Net(linear(), rdrop_weight=5.0)
    x, ids = batches(1)[0]
    loss = net.training_step((x, ids), 0).item()
    assert loss == pytest.approx(F.cross_entropy(net.network(x), ids).item(), abs=1e-6)


def test_in_a_stack_the_labelled_part_alone_is_doubled():
    net = Stacked(deep(), mixup_alpha=1.0, label_smoothing_epsilon=0.1, rdrop_weight=0.7, fixmatch_threshold=0.0)
    net.training_step(streams(1)[0], 0)
    assert len(net.logits) == 1
    assert net.logits[0].shape == (8, 3)
    first, second = net.targets[0].chunk(2)
    assert torch.equal(first, second)
    assert first.min() >= 0.1 / 3 - 1e-7


def test_validation_and_later_losses_are_plain():
    net = Net(deep(), rdrop_weight=0.7)
    data = batches(2)
    trainer = fit(net, data, val_data=data[:1])
    x, ids = data[0]
    expected = F.cross_entropy(net.eval()(x), ids).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_an_error_in_the_step_leaves_no_trace():
    net = Net(rdrop_weight=0.7)
    x, ids = batches(1)[0]
    with pytest.raises(IndexError):
        net.training_step((x, ids + 99), 0)
    logits = torch.randn(4, 3)
    assert net.compute_loss(logits, ids[:4]).item() == F.cross_entropy(logits, ids[:4]).item()


def test_the_term_is_recorded_without_its_weight():
    net = Net(deep(), rdrop_weight=0.7)
    trainer = fit(net, batches(1))
    first, second = (array(half) for half in net.logits[0].chunk(2))
    assert trainer.callback_metrics["train/rdrop_epoch"].item() == pytest.approx(
        (kl(first, second) + kl(second, first)) / 2, rel=1e-5
    )


def test_off_hands_on_the_very_batch():
    net = Net(rdrop_weight=0.0)
    batch = batches(1)[0]
    net.training_step(batch, 0)
    assert net.batches[0] is batch


def test_a_negative_weight():
    with pytest.raises(InvalidValueError) as caught:
        Net(rdrop_weight=-1)
    assert str(caught.value) == "rdrop_weight is -1; it must be a number in [0, inf)."


def test_positions_that_the_loss_ignores_are_not_pulled_together():
    logits = torch.randn(4, 3, 5, requires_grad=True)
    target = torch.randint(3, (4, 5))
    target[:, 3:] = -100
    net = type("Net", (RDropMixin, Tiny), {})(rdrop_weight=2.0)
    net._rdrop_doubled = True
    net.compute_loss(logits, target).backward()
    assert torch.equal(logits.grad[:, :, 3:], torch.zeros(4, 3, 2))
    first, second = (array(part)[:, :, :3].swapaxes(1, 2).reshape(-1, 3) for part in logits.detach().chunk(2))
    expected = (kl(first, second) + kl(second, first)) / 2
    from lightning_tuning.mixins.terms import term_log

    assert term_log(net)._last["train/rdrop"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_an_output_that_is_not_one_of_several_classes(shape):
    net = Net()
    net._rdrop_doubled = True
    with pytest.raises(InvalidValueError, match=r"RDropMixin takes logits .* of two or more classes"):
        net.compute_loss(torch.randn(shape), torch.randn(shape))
