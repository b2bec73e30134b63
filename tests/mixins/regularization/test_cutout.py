import numpy as np
import pytest
import torch

from lightning_tuning import CutoutMixin, RDropMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, batches, convolution, fit
from tests.numerics import array

SHAPE = (2, 5, 5)


class Net(CutoutMixin, Tiny):
    pass


class Repeated(CutoutMixin, RDropMixin, Tiny):
    pass


def made(**settings):
    return Net(convolution(), **{"cutout_size": 3, **settings})


def drawn(count, height=5, width=5):
    """What the step is about to draw, without drawing it."""
    state = torch.get_rng_state()
    rows, columns = torch.randint(height, (count,)).tolist(), torch.randint(width, (count,)).tolist()
    torch.set_rng_state(state)
    return rows, columns


def cut(values, rows, columns, size):
    """Image by image, as the authors' code does it."""
    values = values.copy()
    for image, row, column in zip(values, rows, columns, strict=True):
        top, left = row - size // 2, column - size // 2
        image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
    return values


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [8, 1])
def test_each_image_has_a_square_missing_and_the_target_stays(size, count):
    net = made(cutout_size=size)
    x, ids = batches(1, count, SHAPE)[0]
    torch.manual_seed(2)
    rows, columns = drawn(count)
    before = x.clone()
    if count > 1:
        net.training_step((x, ids), 0)
    else:
        net.eval().training_step((x, ids), 0)  # batch norm refuses to train on one sample
    np.testing.assert_array_equal(array(net.batches[0][0]), cut(array(x), rows, columns, size))
    assert net.targets[0] is ids
    assert torch.equal(x, before)


def test_high_and_wide_are_not_exchanged():
    net = made(cutout_size=4)
    net.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 3 * 9, 3))
    x = torch.randn(8, 2, 3, 9)
    torch.manual_seed(2)
    rows, columns = drawn(8, 3, 9)
    assert max(columns) > 4
    net.training_step((x, torch.zeros(8).long()), 0)
    np.testing.assert_array_equal(array(net.batches[0][0]), cut(array(x), rows, columns, 4))


def test_what_is_missing_is_zero_even_where_the_image_is_not_a_number():
    net = made(cutout_size=5)
    torch.manual_seed(2)
    rows, columns = drawn(8)
    net.training_step((torch.full((8, *SHAPE), float("nan")), torch.zeros(8).long()), 0)
    row, column = rows[0], columns[0]
    assert (net.batches[0][0][0, :, row, column] == 0).all()


def test_every_centre_is_drawn_equally_often():
    net = made(cutout_size=1)
    net.network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(50, 3))
    torch.manual_seed(0)
    for step in range(50):
        net.training_step((torch.ones(100, *SHAPE), torch.zeros(100).long()), step)
    counts = sum(array(1 - x[:, 0]).sum(0) for x, _ in net.batches)
    assert counts.sum() == 5000
    # Chi-square of 24 degrees of freedom: mean 24, standard deviation sqrt(48).
    assert ((counts - 200) ** 2 / 200).sum() < 24 + 5 * np.sqrt(48)


def test_every_image_of_a_dict_has_the_same_square_missing():
    net = made()
    x = {"features": torch.randn(8, *SHAPE), "mask": torch.randint(1, 9, (8, 1, 5, 5)), "camera": "left"}
    torch.manual_seed(2)
    rows, columns = drawn(8)
    net.training_step((x, torch.zeros(8).long()), 0)
    mixed = net.batches[0][0]
    assert mixed["camera"] == "left"
    for name in ("features", "mask"):
        np.testing.assert_array_equal(array(mixed[name]), cut(array(x[name]), rows, columns, 3))
        assert mixed[name].dtype == x[name].dtype


def test_both_passes_of_rdrop_see_the_same_squares():
    net = Repeated(convolution(), cutout_size=3, rdrop_weight=1.0)
    net.training_step(batches(1, shape=SHAPE)[0], 0)
    first, second = net.batches[0][0].chunk(2)
    assert torch.equal(first, second)
    assert (first == 0).any()


def test_the_logged_term_is_the_share_of_missing_pixels():
    net = made()
    trainer = fit(net, batches(1, shape=SHAPE))
    missing = (array(net.batches[0][0]) == 0).mean()
    assert 0 < missing <= 9 / 25
    assert trainer.callback_metrics["train/cutout_epoch"].item() == pytest.approx(missing)


def test_off_hands_on_the_very_batch_and_draws_nothing():
    net, batch = made(cutout_size=0).eval(), batches(1, shape=SHAPE)[0]
    state = torch.get_rng_state()
    net.training_step(batch, 0)
    assert net.batches[0] is batch
    assert torch.equal(torch.get_rng_state(), state)


def test_inputs_that_are_no_images():
    with pytest.raises(InvalidValueError) as caught:
        made().training_step(batches(1)[0], 0)
    assert str(caught.value) == (
        "CutoutMixin takes images [N, C, H, W] of one size, but the input is [8, 4]. Leave it off (cutout_size=0)."
    )


def test_a_square_larger_than_the_images():
    with pytest.raises(InvalidValueError) as caught:
        made(cutout_size=6).training_step(batches(1, shape=SHAPE)[0], 0)
    assert str(caught.value) == (
        "cutout_size is 6, but the images are 5 by 5; it must be at most 5. Half a side is a large square."
    )


@pytest.mark.parametrize("size", [-1, 2.5, True, "8"])
def test_a_size_that_is_no_number_of_pixels(size):
    with pytest.raises(InvalidValueError) as caught:
        made(cutout_size=size)
    assert str(caught.value) == f"cutout_size is {size!r}; it must be an integer of at least 0."
