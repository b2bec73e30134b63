import itertools
import pickle

import numpy as np
import pytest
import torch

from lightning_tuning.data import DeviceAugment
from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import keyed_bits, keyed_uniform, sample_erasing

ALL = {"flip": 0.5, "crop": 3, "erase": 0.6}


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (80, 3, 12, 10), dtype=np.uint8))


@pytest.fixture
def seeds():
    return torch.from_numpy(np.random.default_rng(1).integers(0, 2**64, 80, dtype=np.uint64).view(np.int64))


def one_by_one(steps, x, seeds, salt, fill):
    """What is done to each image, as a loop over the samples."""
    result = []
    for image, seed in zip(x.numpy(), seeds, strict=True):
        own = keyed_bits(seed[None], salt)[0]
        for name, amount in steps.items():
            if name == "flip" and float(keyed_uniform(own, "flip")) < amount:
                image = image[:, :, ::-1]
            elif name == "crop":
                top, left = (int(u * (2 * amount + 1)) for u in keyed_uniform(own, "crop", 2)[0].tolist())
                padded = np.pad(image, ((0, 0), (amount,) * 2, (amount,) * 2), constant_values=fill)
                image = padded[:, top : top + image.shape[1], left : left + image.shape[2]]
            elif name == "erase":
                top, left, height, width = map(int, sample_erasing(own, *image.shape[1:], amount))
                image = image.copy()
                image[:, top : top + height, left : left + width] = fill
        result.append(image)
    return np.stack(result)


@pytest.mark.parametrize(
    "steps", [ALL, {"erase": 0.9, "crop": 4, "flip": 0.2}, {"crop": 2}, {"flip": 1}, {"erase": 1.0, "flip": 0}], ids=str
)
def test_each_image_as_if_it_were_alone(x, seeds, steps):
    augment = DeviceAugment(steps, fill=9)
    for salt in (0, 5):
        found = augment(x, seeds, salt)
        assert found.dtype == torch.uint8
        np.testing.assert_array_equal(found.numpy(), one_by_one(steps, x, seeds, salt, 9))


def test_the_order_is_the_one_given(x, seeds):
    orders = [{"crop": 3, "erase": 1.0}, {"erase": 1.0, "crop": 3}]
    first, second = (DeviceAugment(steps, fill=0)(x.clamp(min=1), seeds) for steps in orders)
    assert not torch.equal(first, second)
    for steps, found in zip(orders, (first, second), strict=True):
        np.testing.assert_array_equal(found.numpy(), one_by_one(steps, x.clamp(min=1), seeds, 0, 0))


@pytest.mark.parametrize("steps", [{}, {"flip": 0, "crop": 0, "erase": 0.0}])
def test_off_values_return_the_batch_itself(x, seeds, steps):
    assert DeviceAugment(steps)(x, seeds) is x


def test_views_differ_and_do_not_depend_on_the_batch(x, seeds):
    augment = DeviceAugment(ALL)
    views = [augment(x, seeds, salt) for salt in range(3)]
    same = [(a == b).flatten(1).all(1).float().mean().item() for a, b in itertools.pairwise(views)]
    assert max(same) < 0.1
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    assert torch.equal(augment(x[order], seeds[order], 1), views[1][order])
    assert torch.equal(pickle.loads(pickle.dumps(augment))(x, seeds, 2), views[2])


def test_floats_and_channels_last(x, seeds):
    augment = DeviceAugment(ALL, fill=7)
    last = x.contiguous(memory_format=torch.channels_last)
    assert augment(last, seeds).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(last, seeds), augment(x, seeds))
    assert torch.equal(augment(x.float(), seeds), augment(x, seeds).float())


def test_masks_are_moved_but_not_erased(x, seeds):
    mask = x[:, 0].long() % 21
    moved = DeviceAugment(ALL).of_masks(mask, seeds, 3)
    expected = one_by_one({"flip": 0.5, "crop": 3}, mask[:, None], seeds, 3, 255)[:, 0]
    np.testing.assert_array_equal(moved.numpy(), expected)
    assert (moved == 255).any()
    assert DeviceAugment({"erase": 1.0}).of_masks(mask, seeds) is mask


def test_scale_and_ratio_of_what_is_erased(x, seeds):
    erased = DeviceAugment({"erase": 1}, fill=0, erase_scale=(0.3, 0.3), erase_ratio=[4.0, 4.0])(x.clamp(min=1), seeds)
    holes = (erased[:, 0] == 0).numpy()
    assert set(holes.any(2).sum(1)) == {12}  # sqrt(36 * 4)
    assert set(holes.any(1).sum(1)) == {3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": {"flp": 0.5}}, "'flp'; did you mean 'flip'.*'flip', 'crop', 'erase'"),
        ({"steps": ["flip"]}, r"steps is \['flip'\]; it must be names with amounts"),
        ({"steps": {"flip": 1.5}}, r"flip is 1.5; it must be a number in \[0, 1\]"),
        ({"steps": {"flip": True}}, r"flip is True; it must be a number in \[0, 1\]"),
        ({"steps": {"erase": -0.1}}, r"erase is -0.1; it must be a number in \[0, 1\]"),
        ({"steps": {"crop": 0.5}}, "crop is 0.5; it must be an integer of at least 0"),
        ({"steps": {"crop": -1}}, "crop is -1; it must be an integer of at least 0"),
        ({"fill": float("nan")}, "fill is nan; it must be a number"),
        ({"fill": "black"}, "fill is 'black'; it must be a number"),
        ({"erase_scale": 0.3}, "erase_scale is 0.3; it must be two numbers"),
        ({"erase_scale": (0.0, 0.3)}, r"erase_scale is 0.0; it must be a number in \(0, 1\]"),
        ({"erase_scale": (0.1, 1.3)}, r"erase_scale is 1.3; it must be a number in \(0, 1\]"),
        ({"erase_ratio": (0.3, 0.2)}, r"erase_ratio is \(0.3, 0.2\); the smallest must come first: write \(0.2, 0.3\)"),
        ({"erase_ratio": (0.3, float("inf"))}, r"erase_ratio is inf; it must be a number in \(0, inf\)"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        DeviceAugment(**{"steps": {"flip": 0.5}, **arguments})


@pytest.mark.parametrize("fill", [0.5, -1, 256])
def test_a_fill_value_that_uint8_cannot_hold(x, seeds, fill):
    augment = DeviceAugment(ALL, fill=fill)
    with pytest.raises(InvalidValueError, match=f"fill is {fill}; on a batch of uint8 .* from 0 to 255"):
        augment(x, seeds)
    with pytest.raises(InvalidValueError, match=f"fill is {fill};"):
        augment.of_masks(x[:, 0], seeds, fill=fill)
    assert augment(x.float(), seeds).eq(fill).any()
    assert augment.of_masks(x[:, 0].long(), seeds, fill=-100).eq(-100).any()
