from math import exp

import numpy as np
import pytest
import torch

from lightning_tuning.functional import drop_block, drop_block_gamma, drop_block_mask, drop_path, drop_rate
from tests.numerics import array

SHAPES = [(6, 3), (6, 3, 4), (6, 3, 4, 5)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("batch_dim", [0, 1])
def test_drop_path_keeps_or_drops_whole_samples(shape, batch_dim):
    torch.manual_seed(0)
    x = torch.randn(shape).abs() + 0.1
    seen = set()
    for _ in range(20):
        y = array(drop_path(x, 0.4, batch_dim))
        for sample, before in zip(np.moveaxis(y, batch_dim, 0), np.moveaxis(array(x), batch_dim, 0), strict=True):
            dropped = (sample == 0).all()
            seen.add(bool(dropped))
            if not dropped:
                np.testing.assert_allclose(sample, before / 0.6, rtol=1e-6)
    assert seen == {True, False}


def test_drop_path_draws_each_sample_by_itself():
    torch.manual_seed(0)
    kept = torch.stack([drop_path(torch.ones(4, 2), 0.5)[:, 0] != 0 for _ in range(2000)]).double()
    assert torch.corrcoef(kept.T)[~torch.eye(4, dtype=torch.bool)].abs().max() < 4 / 2000**0.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_drop_path_keeps_the_expectation(dtype):
    torch.manual_seed(0)
    draws = 40_000
    y = array(drop_path(torch.full((draws, 1), 1.75, dtype=dtype), 0.1))
    # A kept sample is 1.75 / 0.9, rounded once; its standard deviation is 1.75 * sqrt(0.1 / 0.9).
    np.testing.assert_allclose(y[y != 0], 1.75 / 0.9, rtol=torch.finfo(dtype).eps / 2 + 1e-7)
    assert abs(y.mean() - 1.75) < 4 * 1.75 * (0.1 / 0.9) ** 0.5 / draws**0.5


def test_drop_path_gradient_and_what_is_not_finite():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(1)
    y = drop_path(x, 0.5)
    y.sum().backward()
    np.testing.assert_array_equal(array(x.grad), np.where(array(y) != 0, 2.0, 0.0))
    assert 0 < (y == 0).sum() < y.numel()

    torch.manual_seed(1)
    overflown = drop_path(torch.full((6, 3), float("inf")), 0.5)
    assert torch.equal(overflown == 0, y == 0)  # and not NaN


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 9), (14, 14)])
@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_gamma(height, width, size):
    expected = 0.2 / size**2 * height * width / ((height - size + 1) * (width - size + 1))
    assert drop_block_gamma(0.2, size, height, width) == pytest.approx(expected, rel=1e-12)


def test_gamma_of_a_block_as_large_as_the_map_is_the_rate():
    assert drop_block_gamma(0.2, 7, 7, 7) == drop_block_gamma(0.2, 7, 4, 5) == pytest.approx(0.2, rel=1e-12)
    assert drop_block_gamma(0.2, 7, 4, 14) == pytest.approx(0.2 * 14 / (7 * 8), rel=1e-12)


def blocks_in_loops(corners: np.ndarray, gamma: float, rows: int, columns: int) -> np.ndarray:
    """The mask for corners drawn uniformly from [0, 1)."""
    *outer, ys, xs = corners.shape
    mask = np.zeros((*outer, ys + rows - 1, xs + columns - 1), dtype=bool)
    for index in np.ndindex(*corners.shape):
        if corners[index] < gamma:
            *sample, top, left = index
            for y in range(top, top + rows):
                for x in range(left, left + columns):
                    mask[(*sample, y, x)] = True
    return mask


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 3, 6, 9), (3, 5, 4)])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 20])
def test_masks_are_blocks(shape, size):
    rows, columns = min(size, shape[-2]), min(size, shape[-1])
    torch.manual_seed(3)
    mask = drop_block_mask(torch.zeros(shape), 0.4, size)
    torch.manual_seed(3)
    corners = torch.rand(*shape[:-2], shape[-2] - rows + 1, shape[-1] - columns + 1).numpy()
    expected = blocks_in_loops(corners, drop_block_gamma(0.4, size, *shape[-2:]), rows, columns)
    np.testing.assert_array_equal(mask.numpy(), expected)
    assert mask.any()


@pytest.mark.parametrize("size", [1, 2, 3, 6, 9])
def test_the_share_of_dropped_pixels(size):
    """A pixel is dropped unless none of the corners that reach it was drawn."""
    torch.manual_seed(0)
    draws, height, width, rate = 4000, 6, 8, 0.2
    share = drop_block_mask(torch.zeros(draws, 1, height, width), rate, size).double().mean(0)[0].numpy()
    rows, columns = min(size, height), min(size, width)
    gamma = rate * height * width / (rows * columns * (height - rows + 1) * (width - columns + 1))
    reach = np.array(
        [
            [
                sum(
                    y - rows < top <= y and x - columns < left <= x
                    for top in range(height - rows + 1)
                    for left in range(width - columns + 1)
                )
                for x in range(width)
            ]
            for y in range(height)
        ]
    )
    expected = 1 - (1 - gamma) ** reach
    assert np.abs(share - expected).max() < 5 * (0.25 / draws) ** 0.5
    assert abs(share.mean() - rate) < 0.06  # blocks overlap, so that it stays below


def test_channels_and_samples_have_blocks_of_their_own():
    torch.manual_seed(0)
    mask = drop_block_mask(torch.zeros(4, 6, 16, 16), 0.3, 2)
    assert len({m.numpy().tobytes() for m in mask.flatten(0, 1)}) == 24


@pytest.mark.parametrize("size", [2, 3, 7])
def test_what_is_kept_is_scaled_by_the_share_kept(size):
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    y = drop_block(x, 0.3, size)
    torch.manual_seed(5)
    mask = drop_block_mask(x, 0.3, size).numpy()
    scale = mask.size / (~mask).sum()
    np.testing.assert_allclose(array(y), np.where(mask, 0.0, array(x) * scale), rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(array(x.grad), np.where(mask, 0.0, scale), rtol=1e-6)


def test_drop_block_keeps_the_sum_of_equal_activations():
    torch.manual_seed(0)
    for _ in range(10):
        assert drop_block(torch.ones(2, 3, 8, 8), 0.3, 3).mean().item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_all_dropped_is_zero_with_a_gradient_of_zero(dtype):
    x = torch.ones(1, 1, 300, 300, dtype=dtype, requires_grad=True)
    y = drop_block(x, 1 - 1e-9, 300)
    assert y.dtype == dtype
    assert not y.any()
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def test_single_pixels_are_left_alone():
    x = torch.randn(8, 50, 1, 1)
    assert drop_block(x, 0.9, 7) is x


def test_rates_over_a_run():
    assert [drop_rate("constant", 0.3, p) for p in (0, 0.4, 1)] == [0.3, 0.3, 0.3]
    assert [drop_rate("linear", 0.3, p) for p in (0, 0.4, 1)] == pytest.approx([0, 0.12, 0.3])
    curriculum = [drop_rate("curriculum", 0.3, p, gamma=4) for p in (0, 0.25, 1)]
    assert curriculum == pytest.approx([0, 0.3 * (1 - exp(-1)), 0.3 * (1 - exp(-4))])
    early = [drop_rate("early", 0.3, p, share=0.4) for p in (0, 0.1, 0.3, 0.4, 0.7, 1)]
    assert early == pytest.approx([0.3, 0.225, 0.075, 0, 0, 0])
