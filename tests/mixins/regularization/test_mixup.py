from collections import namedtuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning import MixupMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import sample_beta
from tests.mixins.tiny import Tiny, batches, convolution, fit, linear
from tests.numerics import array, cross_entropy, one_hot

Pair = namedtuple("Pair", ["image", "label"])


class Net(MixupMixin, Tiny):
    pass


class Unnumbered(Tiny):
    def __init__(self, network=None):
        super().__init__(network)
        del self.num_classes


class UnnumberedNet(MixupMixin, Unnumbered):
    pass


def drawn(alpha, size):
    """What the step is about to draw, without drawing it."""
    state = torch.get_rng_state()
    share, partner = sample_beta(alpha), torch.randperm(size).numpy()
    torch.set_rng_state(state)
    return share, partner


@pytest.mark.parametrize("shape", [(4,), (2, 5, 5)])
def test_the_host_sees_the_mixed_batch(shape):
    net = Net(convolution() if len(shape) > 1 else linear(), mixup_alpha=0.7)
    x, ids = batches(1, shape=shape)[0]
    torch.manual_seed(3)
    share, partner = drawn(0.7, 8)
    assert 0.1 < share < 0.9
    assert (partner != np.arange(8)).any()
    loss = net.training_step((x, ids), 0)
    mixed, target = net.batches[0]
    labels = one_hot(ids.numpy(), 3)
    np.testing.assert_allclose(array(mixed), share * array(x) + (1 - share) * array(x)[partner], atol=1e-6)
    np.testing.assert_allclose(array(target), share * labels + (1 - share) * labels[partner], atol=1e-7)
    assert loss.item() == pytest.approx(cross_entropy(array(net.logits[0]), array(target)), rel=1e-6)


def test_the_loss_is_the_papers_two_terms():
    """lambda CE(y_a) + (1 - lambda) CE(y_b): the same, for cross entropy is linear in the target."""
    net = Net(mixup_alpha=1.0)
    x, ids = batches(1)[0]
    share, partner = drawn(1.0, 8)
    loss = net.training_step((x, ids), 0).item()
    logits = net.logits[0]
    two_terms = share * F.cross_entropy(logits, ids) + (1 - share) * F.cross_entropy(logits, ids[partner])
    assert loss == pytest.approx(two_terms.item(), rel=1e-6)


def test_every_tensor_of_a_dict_is_mixed_with_the_same_partners():
    net = Net(mixup_alpha=1.0)
    x, ids = batches(1)[0]
    mask = torch.rand(8, 4)
    share, partner = drawn(1.0, 8)
    net.training_step(({"features": x, "mask": mask, "language": "en"}, ids), 0)
    mixed = net.batches[0][0]
    assert mixed["language"] == "en"
    for name, values in [("features", x), ("mask", mask)]:
        given = array(values)
        np.testing.assert_allclose(array(mixed[name]), share * given + (1 - share) * given[partner], atol=1e-6)


def test_probabilities_as_targets_are_mixed_too():
    net = Net(mixup_alpha=1.0)
    x, target = torch.randn(8, 4), torch.rand(8, 3).softmax(1)
    share, partner = drawn(1.0, 8)
    net.training_step((x, target), 0)
    expected = share * array(target) + (1 - share) * array(target)[partner]
    np.testing.assert_allclose(array(net.targets[0]), expected, atol=1e-7)


def test_the_batch_itself_stays_as_it_is_and_keeps_its_type():
    net = Net(mixup_alpha=1.0)
    x, ids = batches(1)[0]
    before = x.clone(), ids.clone()
    for batch in ([x, ids, "index"], Pair(x, ids)):
        net.training_step(batch, 0)
        assert batch[0] is x
        assert batch[1] is ids
    assert torch.equal(x, before[0])
    assert torch.equal(ids, before[1])
    as_list, as_pair = net.batches
    assert isinstance(as_list, list)
    assert as_list[2] == "index"
    assert as_pair.label is as_pair[1]


def test_each_step_draws_anew():
    net = Net(mixup_alpha=1.0)
    batch = batches(1)[0]
    net.training_step(batch, 0)
    net.training_step(batch, 1)
    assert not torch.equal(net.batches[0][0], net.batches[1][0])


def test_a_share_of_one_is_the_plain_batch(monkeypatch):
    monkeypatch.setattr("lightning_tuning.mixins.regularization.mixup.sample_beta", lambda alpha: 1.0)
    net = Net(mixup_alpha=1.0)
    x, ids = batches(1)[0]
    net.training_step((x, ids), 0)
    assert torch.equal(net.batches[0][0], x)
    assert torch.equal(net.batches[0][1], F.one_hot(ids, 3).float())


def test_validation_is_not_mixed():
    net = Net(mixup_alpha=1.0)
    data = batches(2)
    fit(net, data, val_data=data[:1])
    assert net.targets[-1] is data[0][1]


def test_the_logged_term_is_the_larger_share():
    net = Net(mixup_alpha=1.0)
    share, _ = drawn(1.0, 8)
    trainer = fit(net, batches(1))
    assert trainer.callback_metrics["train/mixup_epoch"].item() == pytest.approx(max(share, 1 - share))


def test_off_hands_on_the_very_batch_and_draws_nothing():
    net = Net(mixup_alpha=0)
    batch = batches(1)[0]
    state = torch.get_rng_state()
    net.training_step(batch, 0)
    assert net.batches[0] is batch
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("as_dict", [False, True])
def test_integers_cannot_be_mixed(as_dict):
    tokens = torch.randint(9, (8, 4))
    with pytest.raises(InvalidValueError) as caught:
        Net(mixup_alpha=1.0).training_step(({"features": tokens} if as_dict else tokens, torch.zeros(8).long()), 0)
    assert str(caught.value) == (
        "MixupMixin cannot mix inputs of type torch.int64. It mixes floating tensors only: use it on images or "
        "vectors, or leave it off (mixup_alpha=0). ManifoldMixupMixin mixes hidden layers, and so takes token ids."
    )


def test_labels_out_of_range():
    with pytest.raises(InvalidValueError, match=r"The labels run from 0 to 3, but num_classes=3 allows 0 to 2"):
        Net(mixup_alpha=1.0).training_step((torch.randn(2, 4), torch.tensor([0, 3])), 0)


def test_class_ids_need_num_classes():
    net = UnnumberedNet(mixup_alpha=1.0)
    with pytest.raises(MisconfigurationException) as caught:
        fit(net, batches(1))
    assert str(caught.value) == (
        "Unnumbered has no attribute num_classes, which MixupMixin needs: the number of classes that the target's ids "
        "tell apart. Write self.num_classes = ... in its __init__; a target that is no class ids has to be floating."
    )
    assert net.batches == []
    fit(UnnumberedNet(mixup_alpha=0), batches(1))


class Regression(Unnumbered):
    task = "regression"

    def compute_loss(self, logits, target):
        self.targets.append(target)
        return F.mse_loss(logits.squeeze(1), target)


class RegressionNet(MixupMixin, Regression):
    pass


@pytest.mark.parametrize(
    ("outputs", "target"),
    [(1, torch.randn(8)), (3, torch.rand(8, 3)), (1, torch.arange(8)), (3, torch.randint(2, (8, 3)).bool())],
    ids=["numbers", "vectors", "whole numbers", "indicators"],
)
def test_values_are_mixed_as_they_are_and_need_no_num_classes(outputs, target):
    net, x = RegressionNet(torch.nn.Linear(4, outputs), mixup_alpha=1.0), torch.randn(8, 4)
    torch.manual_seed(5)
    share, partner = drawn(1.0, 8)
    given = array(target)
    net.training_step((x, target), 0)
    assert net.targets[0].dtype == torch.float32
    np.testing.assert_allclose(array(net.targets[0]), share * given + (1 - share) * given[partner], atol=1e-6)
    np.testing.assert_array_equal(array(target), given)


def test_dense_class_ids_become_probabilities_of_each_pixel():
    net = Net(torch.nn.Conv2d(2, 3, 1), mixup_alpha=1.0)
    x, ids = torch.randn(8, 2, 5, 5), torch.randint(3, (8, 5, 5))
    torch.manual_seed(5)
    share, partner = drawn(1.0, 8)
    net.training_step((x, ids), 0)
    labels = one_hot(ids.numpy(), 3)
    assert labels.shape == (8, 3, 5, 5)
    np.testing.assert_allclose(array(net.targets[0]), share * labels + (1 - share) * labels[partner], atol=1e-6)


@pytest.mark.parametrize("size", [3, 7])
def test_an_odd_batch(size):
    net = Net(mixup_alpha=1.0)
    x, ids = batches(1, size)[0]
    share, partner = drawn(1.0, size)
    net.training_step((x, ids), 0)
    expected = share * array(x) + (1 - share) * array(x)[partner]
    np.testing.assert_allclose(array(net.batches[0][0]), expected, atol=1e-6)


def test_a_batch_of_another_form():
    with pytest.raises(InvalidValueError) as caught:
        Net(mixup_alpha=1.0).training_step({"image": torch.zeros(1)}, 0)
    assert str(caught.value) == (
        "The batch is a dict, not (x, target, ...). Define unpack_batch(batch) -> (x, target) and "
        "pack_batch(batch, x, target) -> batch in Tiny."
    )


def test_a_negative_alpha():
    with pytest.raises(InvalidValueError) as caught:
        Net(mixup_alpha=-0.2)
    assert str(caught.value) == "mixup_alpha is -0.2; it must be a number in [0, inf)."
