import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

from lightning_tuning.functional import (
    batch_crop,
    batch_erase,
    batch_flip,
    keyed_uniform,
    random_crop,
    random_erase,
    random_flip,
    sample_erasing,
    sample_flips,
    sample_shifts,
)

SCALE, RATIO = (0.02, 0.4), (0.3, 1 / 0.3)


@pytest.fixture(scope="module")
def seeds():
    return torch.from_numpy(np.random.default_rng(5).integers(0, 2**64, 4000, dtype=np.uint64).view(np.int64))


@pytest.fixture
def x():
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 9, 12), dtype=np.uint8))


@pytest.mark.parametrize("p", [0.1, 0.5, 1.0])
def test_share_of_flips(seeds, p):
    flips = sample_flips(seeds, p)
    assert flips.tolist() == [u < p for u in keyed_uniform(seeds, "flip")[:, 0].tolist()]
    assert flips.float().mean().item() == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p) / 4000))


def test_shifts_are_uniform(seeds):
    top, left = sample_shifts(seeds, 4)
    expected = [[math.floor(9 * u) for u in row] for row in keyed_uniform(seeds, "crop", 2).tolist()]
    assert torch.stack([top, left], 1).tolist() == expected
    assert chisquare(np.bincount((9 * top + left).numpy(), minlength=81)).pvalue > 0.001


def erasing(draws, height, width, p, scale, ratio):
    """The box of one sample, written out."""
    erased, share, shape, row, column = draws
    if erased >= p:
        return None
    area = (scale[0] + share * (scale[1] - scale[0])) * height * width
    low = min(max(area / width**2, ratio[0]), ratio[1])  # any lower and the box is wider than the image
    high = min(max(height**2 / area, ratio[0]), ratio[1])  # any higher and it is taller
    chosen = low * (high / low) ** shape
    rows = min(max(round(math.sqrt(area * chosen)), 1), height)
    columns = min(max(round(math.sqrt(area / chosen)), 1), width)
    return math.floor(row * (height - rows + 1)), math.floor(column * (width - columns + 1)), rows, columns


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [(32, 32, SCALE, RATIO), (9, 40, (0.2, 0.9), RATIO), (7, 5, (0.001, 1.0), (0.1, 0.2)), (8, 8, (1, 1), (2, 9))],
)
def test_boxes_are_those_written_out(seeds, height, width, scale, ratio):
    boxes = torch.stack(sample_erasing(seeds, height, width, 0.7, scale, ratio), 1).tolist()
    expected = [erasing(d, height, width, 0.7, scale, ratio) for d in keyed_uniform(seeds, "erase", 5).tolist()]
    for (top, left, rows, columns), box in zip(boxes, expected, strict=True):
        if box is None:
            assert rows == columns == 0
        else:
            assert (top, left, rows, columns) == box
            assert top + rows <= height
            assert left + columns <= width
            assert min(top, left, rows - 1, columns - 1) >= 0
    assert sum(box is not None for box in expected) / 4000 == pytest.approx(0.7, abs=5 * math.sqrt(0.21 / 4000))


def test_laws_of_area_ratio_and_place(seeds):
    """On an image of 1024 by 1024, where rounding does not show, and with ratios that all fit."""
    top, left, rows, columns = (
        part.double() for part in sample_erasing(seeds, 1024, 1024, 1.0, (0.02, 0.25), (0.5, 2))
    )
    share = rows * columns / 1024**2
    assert kstest((share - 0.02) / 0.23, "uniform").pvalue > 0.001
    assert kstest((rows / columns).log() / math.log(4) + 0.5, "uniform").pvalue > 0.001
    for first, side in ((top, rows), (left, columns)):
        assert kstest((first + 0.5) / (1025 - side), "uniform").pvalue > 0.001
    table = np.corrcoef(torch.stack([share, (rows / columns).log(), top / (1025 - rows), left / (1025 - columns)]))
    assert np.abs(table - np.eye(4)).max() < 4.5 / math.sqrt(4000)


def test_each_sample_gets_what_was_drawn_for_it(x, seeds):
    seeds = seeds[: len(x)]
    assert torch.equal(random_flip(x, seeds, 0.3), batch_flip(x, sample_flips(seeds, 0.3)))
    assert torch.equal(random_crop(x, seeds, 3, 7), batch_crop(x, 3, *sample_shifts(seeds, 3), 7))
    boxes = sample_erasing(seeds, 9, 12, 0.6, (0.1, 0.2), (0.5, 3))
    assert torch.equal(random_erase(x, seeds, 0.6, (0.1, 0.2), (0.5, 3), 7), batch_erase(x, *boxes, 7))
    for function in (random_flip, random_crop, random_erase):
        assert not torch.equal(function(x, seeds), x)
        assert torch.equal(function(x[20:30], seeds[20:30]), function(x, seeds)[20:30])


def test_off_values_return_the_batch_itself(x, seeds):
    seeds = seeds[: len(x)]
    assert random_flip(x, seeds, 0) is x
    assert random_crop(x, seeds, 0) is x
    assert random_erase(x, seeds, 0) is x
    assert not sample_flips(seeds, 0).any()
    assert not sample_erasing(seeds, 9, 12, 0).height.any()


def test_masks_move_with_their_images(x, seeds):
    seeds = seeds[: len(x)]
    mask = x[:, 0].long()
    assert torch.equal(random_flip(mask, seeds), random_flip(x, seeds)[:, 0].long())
    assert torch.equal(random_crop(mask, seeds, 3, 255), random_crop(x, seeds, 3, 255)[:, 0].long())


def test_autocast_changes_nothing_and_no_generator_is_touched(x, seeds):
    def augmented():
        return random_erase(random_crop(random_flip(x, seeds[:64]), seeds[:64]), seeds[:64])

    before = torch.get_rng_state()
    expected = augmented()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augmented(), expected)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_one_graph_under_compile(x, seeds):
    def augmented(x, seeds):
        return random_erase(random_crop(random_flip(x, seeds), seeds), seeds)

    compiled = torch.compile(augmented, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, seeds[:64]), augmented(x, seeds[:64]))
