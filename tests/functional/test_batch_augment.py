import numpy as np
import pytest
import torch

from lightning_tuning.data.normalize import Normalize
from lightning_tuning.functional import batch_crop, batch_erase, batch_flip, crop_boxes, flip_boxes, fused_normalize

N, H, W = 6, 5, 7
SHAPES = {"images": (N, 3, H, W), "masks": (N, H, W), "clips": (N, 2, 3, H, W)}
TYPES = [torch.uint8, torch.float32, torch.int64, torch.bool, torch.bfloat16]
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_type = pytest.mark.parametrize("dtype", TYPES, ids=str)


def values(shape, dtype):
    drawn = torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape))
    return (drawn % 2 if dtype == torch.bool else drawn).to(dtype)


def compare(found, expected, x):
    assert found.dtype == x.dtype
    assert found.stride() == x.stride()
    np.testing.assert_array_equal(found.double().numpy(), np.stack(expected))


FLIP = torch.tensor([True, False, False, True, True, False])
TOP, LEFT = torch.tensor([0, 4, 2, 1, 3, 0]), torch.tensor([4, 0, 2, 3, 3, 1])


@every_shape
@every_type
def test_flip(shape, dtype):
    x = values(shape, dtype)
    expected = [image[..., ::-1] if flip else image for image, flip in zip(x.double().numpy(), FLIP, strict=True)]
    compare(batch_flip(x, FLIP), expected, x)


@every_shape
@every_type
def test_crop(shape, dtype):
    x = values(shape, dtype)
    expected = []
    for image, top, left in zip(x.double().numpy(), TOP.tolist(), LEFT.tolist(), strict=True):
        padded = np.full((*image.shape[:-2], H + 4, W + 4), 1.0)
        padded[..., 2 : 2 + H, 2 : 2 + W] = image
        expected.append(padded[..., top : top + H, left : left + W])
    compare(batch_crop(x, 2, TOP, LEFT, fill=1), expected, x)


def test_crop_in_the_middle_changes_nothing_and_padding_may_exceed_the_image():
    x = values(SHAPES["images"], torch.uint8)
    middle = torch.full((N,), 9)
    assert torch.equal(batch_crop(x, 9, middle, middle), x)
    assert batch_crop(x, 9, 0 * middle, middle, fill=3).eq(3).all()


BOXES = torch.tensor([[0, 0, 5, 7], [1, 2, 3, 4], [4, 6, 3, 3], [2, 2, 0, 3], [2, 2, 3, 0], [-2, 1, 3, 1]]).T


@every_shape
@every_type
def test_erase(shape, dtype):
    x = values(shape, dtype)
    expected = x.double().numpy().copy()
    for image, top, left, height, width in zip(expected, *BOXES.tolist(), strict=True):
        image[..., max(top, 0) : top + height, left : left + width] = 1
    given = x.clone()
    compare(batch_erase(x, *BOXES, fill=1), expected, x)
    assert torch.equal(x, given)


@pytest.mark.parametrize(
    "function",
    [lambda x: batch_flip(x, FLIP), lambda x: batch_crop(x, 2, TOP, LEFT), lambda x: batch_erase(x, *BOXES)],
    ids=["flip", "crop", "erase"],
)
def test_channels_last_is_kept_and_gradients_follow_the_pixels(function):
    x = values(SHAPES["images"], torch.float32)
    last = x.contiguous(memory_format=torch.channels_last)
    assert function(last).stride() == last.stride()
    assert torch.equal(function(last), function(x))
    x = torch.randn(N, 1, H, W, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(function, x)


def corners(x):
    """(left, top, right, bottom) of what is not 0 in each image ``[N, H, W]``."""
    found = []
    for image in x.numpy():
        rows, columns = np.nonzero(image)
        found.append([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else None)
    return found


def test_boxes_move_as_their_pixels_do():
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.integers(0, 9, (200, 2, 2)), axis=1) + np.array(
        [[0, 0], [1, 1]]
    )  # [[left, top], [right, bottom]]
    boxes = torch.from_numpy(boxes.reshape(200, 1, 4))
    image = torch.zeros(200, 9, 12, dtype=torch.uint8)
    for drawn, ((left, top, right, bottom),) in zip(image, boxes.tolist(), strict=True):
        drawn[top:bottom, left:right] = 1
    flip = torch.from_numpy(rng.integers(0, 2, 200) == 1)
    moved = flip_boxes(boxes, flip, 12)
    assert moved[:, 0].tolist() == corners(batch_flip(image, flip))
    top, left = torch.from_numpy(rng.integers(0, 11, (2, 200)))
    cut = crop_boxes(boxes.float(), 5, top, left, 9, 12)
    assert cut.dtype == torch.float32
    gone = 0
    for box, expected in zip(cut[:, 0].tolist(), corners(batch_crop(image, 5, top, left)), strict=True):
        if expected is None:
            gone += 1
            assert (box[2] - box[0]) * (box[3] - box[1]) == 0
        else:
            assert box == expected
    assert gone > 3


MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]


def test_normalize_gives_the_bits_of_the_datamodules_own():
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 5, 3), dtype=np.uint8)
    images[0].reshape(-1)[:3] = 0, 128, 255
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    given = x.clone()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    expected = Normalize(MEAN, STD)(images)
    kept = fused_normalize(x, mean, std)
    assert torch.equal(kept, expected)
    assert kept.is_contiguous(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = fused_normalize(x, mean, std, memory_format=layout)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=layout)
    half = fused_normalize(x, mean, std, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, expected.bfloat16())
    floats = x.float()
    assert torch.equal(fused_normalize(floats, mean, std), expected)
    assert torch.equal(floats, given.float())
    precise = (images / 255.0 - MEAN) / STD
    np.testing.assert_allclose(expected.numpy(), precise.transpose(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
