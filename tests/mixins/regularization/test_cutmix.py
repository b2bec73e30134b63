import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import CutMixMixin, RDropMixin
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import sample_beta, sample_box
from tests.mixins.tiny import Tiny, batches, convolution, fit
from tests.numerics import array, cross_entropy, one_hot

SHAPE = (2, 5, 5)


class Net(CutMixMixin, Tiny):
    pass


class Repeated(CutMixMixin, RDropMixin, Tiny):
    pass


def made(**settings):
    return Net(convolution(), **{"cutmix_alpha": 1.0, **settings})


def drawn(alpha, size, height=5, width=5):
    """What the step is about to draw, without drawing it."""
    state = torch.get_rng_state()
    box = sample_box(height, width, 1 - sample_beta(alpha))
    partner = torch.randperm(size).numpy()
    torch.set_rng_state(state)
    return box, partner


def pasted(values, box, partner):
    """The paper's equation 1 with its mask M written out."""
    mask = np.ones(values.shape[-2:])
    mask[box.top : box.bottom, box.left : box.right] = 0
    return mask * values + (1 - mask) * values[partner]


@pytest.mark.parametrize("size", [8, 7])
def test_the_host_sees_boxes_of_the_partners_and_labels_mixed_by_area(size):
    net = made()
    x, ids = batches(1, size, SHAPE)[0]
    torch.manual_seed(4)
    box, partner = drawn(1.0, size)
    assert 0 < box.area < 25
    assert (partner != np.arange(size)).any()
    loss = net.training_step((x, ids), 0)
    mixed, target = net.batches[0]
    share, labels = 1 - box.area / 25, one_hot(ids.numpy(), 3)
    np.testing.assert_array_equal(array(mixed), pasted(array(x), box, partner))
    np.testing.assert_allclose(array(target), share * labels + (1 - share) * labels[partner], atol=1e-7)
    assert loss.item() == pytest.approx(cross_entropy(array(net.logits[0]), array(target)), rel=1e-6)


def test_the_share_is_that_of_the_pixels_after_clipping():
    """Counted in images of one colour each, over many boxes."""
    net = Net(nn.Sequential(nn.Flatten(), nn.Linear(6 * 9, 4)), cutmix_alpha=1.0)
    net.num_classes = 4
    colours = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 6, 9)
    for step in range(100):
        net.training_step((colours, torch.arange(4)), step)
    shares = set()
    for mixed, target in net.batches:
        for image, probabilities in zip(mixed, target, strict=True):
            counted = [(image == colour).float().mean().item() for colour in range(4)]
            np.testing.assert_allclose(array(probabilities), counted, atol=1e-6)
            shares.add(round(max(counted), 3))
    assert len(shares) > 10


def test_a_target_with_an_image_of_its_own_gets_the_same_box():
    net = Net(nn.Conv2d(2, 3, 1), cutmix_alpha=1.0)
    x = torch.randn(8, *SHAPE)
    for target in (torch.randint(3, (8, 5, 5)), torch.rand(8, 3, 5, 5).softmax(1)):
        torch.manual_seed(4)
        box, partner = drawn(1.0, 8)
        before = target.clone()
        net.training_step((x, target), 0)
        np.testing.assert_array_equal(array(net.targets[-1]), pasted(array(target), box, partner))
        assert net.targets[-1].dtype == target.dtype
        assert torch.equal(target, before)


def test_floating_targets_are_mixed_as_they_are():
    net = made()
    x, target = torch.randn(8, *SHAPE), torch.rand(8, 3).softmax(1)
    torch.manual_seed(4)
    box, partner = drawn(1.0, 8)
    net.training_step((x, target), 0)
    share = 1 - box.area / 25
    expected = share * array(target) + (1 - share) * array(target)[partner]
    np.testing.assert_allclose(array(net.targets[0]), expected, atol=1e-7)


def test_every_image_of_a_dict_gets_the_same_box():
    class Pair(nn.Module):
        def forward(self, x):
            return torch.cat([x["image"], x["depth"]], 1).flatten(1)[:, :3] + self.bias

    network = Pair()
    network.bias = nn.Parameter(torch.zeros(3))

    class Dict(Tiny):
        def forward(self, x):
            return self.network(x)

    net = type("DictNet", (CutMixMixin, Dict), {})(network, cutmix_alpha=1.0)
    x = {"image": torch.randn(8, 3, 5, 5), "depth": torch.randint(9, (8, 1, 5, 5)), "camera": "left"}
    torch.manual_seed(4)
    box, partner = drawn(1.0, 8)
    net.training_step((x, torch.zeros(8).long()), 0)
    mixed = net.batches[0][0]
    assert mixed["camera"] == "left"
    for name in ("image", "depth"):
        np.testing.assert_array_equal(array(mixed[name]), pasted(array(x[name]), box, partner))
        assert mixed[name].dtype == x[name].dtype


def test_a_share_of_one_is_the_plain_batch(monkeypatch):
    monkeypatch.setattr("lightning_tuning.mixins.regularization.cutmix.sample_beta", lambda alpha: 1.0)
    net, (x, ids) = made(), batches(1, shape=SHAPE)[0]
    net.training_step((x, ids), 0)
    assert torch.equal(net.batches[0][0], x)
    assert torch.equal(net.batches[0][1], F.one_hot(ids, 3).float())


def test_both_passes_of_rdrop_see_the_same_boxes():
    net = Repeated(convolution(), cutmix_alpha=1.0, rdrop_weight=1.0)
    x, ids = batches(1, shape=SHAPE)[0]
    torch.manual_seed(4)
    box, partner = drawn(1.0, 8)
    net.training_step((x, ids), 0)
    for half in net.batches[0][0].chunk(2):
        np.testing.assert_array_equal(array(half), pasted(array(x), box, partner))


def test_the_batch_itself_stays_as_it_is():
    net = made()
    x, ids = batches(1, shape=SHAPE)[0]
    before = x.clone(), ids.clone()
    batch = [x, ids, "index"]
    for step in range(5):
        net.training_step(batch, step)
    assert batch[0] is x
    assert torch.equal(x, before[0])
    assert torch.equal(ids, before[1])
    assert net.batches[0][2] == "index"


@pytest.mark.parametrize("lam", [0.1, 0.9])
def test_the_logged_term_is_the_larger_share(lam, monkeypatch):
    monkeypatch.setattr("lightning_tuning.mixins.regularization.cutmix.sample_beta", lambda alpha: lam)
    net = made()
    torch.manual_seed(4)
    state = torch.get_rng_state()
    share = 1 - sample_box(5, 5, 1 - lam).area / 25
    torch.set_rng_state(state)
    trainer = fit(net, batches(1, shape=SHAPE))
    assert (share < 0.5) == (lam < 0.5)
    assert trainer.callback_metrics["train/cutmix_epoch"].item() == pytest.approx(max(share, 1 - share))


def test_off_hands_on_the_very_batch_and_draws_nothing():
    net, batch = made(cutmix_alpha=0).eval(), batches(1, shape=SHAPE)[0]
    state = torch.get_rng_state()
    net.training_step(batch, 0)
    assert net.batches[0] is batch
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("x", "came"),
    [
        (torch.zeros(8, 4), "[8, 4]"),
        (torch.zeros(8, 4).long(), "[8, 4]"),
        (torch.zeros(8, 4, 2), "[8, 4, 2]"),
        ({"image": torch.zeros(8, 2, 5, 5), "mask": torch.zeros(8, 1, 5, 4)}, "[8, 2, 5, 5] and [8, 1, 5, 4]"),
        ({"image": torch.zeros(8, 2, 5, 5), "age": torch.zeros(8)}, "[8, 2, 5, 5] and [8]"),
    ],
)
def test_inputs_that_are_no_images(x, came):
    with pytest.raises(InvalidValueError) as caught:
        made().training_step((x, torch.zeros(8).long()), 0)
    assert str(caught.value) == (
        f"CutMixMixin takes images [N, C, H, W] of one size, but the input is {came}. Use MixupMixin for vectors and "
        "sequences, ManifoldMixupMixin for token ids, or leave it off (cutmix_alpha=0)."
    )


def test_a_target_of_another_size():
    with pytest.raises(InvalidValueError) as caught:
        made().training_step((torch.zeros(8, *SHAPE), torch.zeros(8, 3, 4).long()), 0)
    assert str(caught.value) == (
        "CutMixMixin pastes the same box into images and target, but the images are 5 by 5 and the target is "
        "[8, 3, 4]. Give a target of the images' size, or leave it off (cutmix_alpha=0)."
    )


def test_a_negative_alpha():
    with pytest.raises(InvalidValueError, match=r"cutmix_alpha is -1; it must be a number in \[0, inf\)"):
        made(cutmix_alpha=-1)
