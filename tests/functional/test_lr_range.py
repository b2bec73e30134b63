import itertools
import math

import numpy as np
import pytest

from lightning_tuning.functional.lr_range import has_diverged, longest_fall, lr_sweep, smoothed, suggest_lr


@pytest.mark.parametrize("mode", ["exponential", "linear"])
def test_the_sweep_is_numpys(mode):
    space = np.geomspace if mode == "exponential" else np.linspace
    rates = lr_sweep(1e-6, 3.0, 37, mode)
    np.testing.assert_allclose(rates, space(1e-6, 3.0, 37), rtol=1e-12)
    assert rates[0] == 1e-6


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.98])
def test_the_average_is_the_weighted_mean_of_all_values_so_far(momentum):
    values = np.random.default_rng(0).normal(size=30)
    expected = []
    for t in range(1, 31):
        weights = momentum ** np.arange(t - 1, -1, -1.0)
        expected.append((weights * values[:t]).sum() / weights.sum())
    np.testing.assert_allclose(smoothed(values.tolist(), momentum), expected, rtol=1e-12)


@pytest.mark.parametrize(("loss", "best", "diverged"), [
    (8.01, 2.0, True), (8.0, 2.0, False), (math.nan, 2.0, True), (math.inf, 2.0, True), (1.0, -2.0, False),
    (3.99, -2.0, False), (4.01, -2.0, True),
])  # fmt: skip
def test_divergence_at_four_times_the_best_loss(loss, best, diverged):
    assert has_diverged(loss, best, 4.0) is diverged


def test_the_longest_fall_is_as_long_as_any():
    generator = np.random.default_rng(1)
    for _ in range(30):
        values = generator.integers(0, 8, 9).tolist()
        fall = longest_fall(values)
        picked = [values[i] for i in fall]
        assert fall == sorted(set(fall))
        assert all(a > b for a, b in itertools.pairwise(picked))
        falls = (
            len(some)
            for size in range(1, 10)
            for some in itertools.combinations(values, size)
            if all(a > b for a, b in itertools.pairwise(some))
        )
        assert len(fall) == max(falls)
    assert longest_fall([]) == []


def bowl():
    """A loss that is flat, falls like a sigmoid of log10(lr) around 1e-2 and rises above 1."""
    lrs = np.geomspace(1e-6, 10, 141)
    x = np.log10(lrs)
    losses = 2 - 1.5 / (1 + np.exp(-4 * (x + 2))) + np.where(x > 0, 8 * x**2, 0)
    return lrs.tolist(), losses.tolist()


def test_the_rules_on_a_curve_whose_answers_are_known():
    lrs, losses = bowl()
    found = suggest_lr(lrs, losses, diverged_at=7.0, fraction=0.2)
    assert found["steepest"] == pytest.approx(1e-2, rel=0.01)  # the sigmoid's middle
    lowest = lrs[int(np.argmin(losses))]
    assert found["minimum"] == pytest.approx(lowest / 10)
    assert found["divergence"] == pytest.approx(1.4)
    # It falls from the first point that counts, 10 % of the way, to the minimum.
    assert found["valley"] == pytest.approx(math.sqrt(lrs[14] * lowest), rel=0.07)


def test_a_linear_sweep_has_the_same_steepest_place():
    """The slope is over the logarithm whatever the spacing: over the rate itself the small rates would always win."""
    lrs = np.linspace(1e-4, 0.05, 4001)
    losses = 2 - 1.5 / (1 + np.exp(-4 * (np.log10(lrs) + 2)))
    assert suggest_lr(lrs.tolist(), losses.tolist())["steepest"] == pytest.approx(1e-2, rel=0.05)
    exponential = suggest_lr(*bowl())["steepest"]
    by_rate = np.gradient(bowl()[1], bowl()[0])
    assert bowl()[0][int(np.argmin(by_rate))] < 0.7 * exponential


def test_the_first_tenth_is_left_out_and_what_follows_the_minimum_is_not_steepest():
    lrs = np.geomspace(1e-5, 1, 20).tolist()
    losses = [9.0, 0.1, *np.linspace(3, 1, 10), 9.0, 2.0, *np.linspace(8, 9, 6)]
    found = suggest_lr(lrs, losses)
    assert found["minimum"] == pytest.approx(lrs[11] / 10)
    assert lrs[2] <= found["steepest"] <= lrs[11]
    assert found["divergence"] is None


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 1.5, 2.0], [1.0] * 30])
def test_a_loss_that_never_falls_suggests_nothing(losses):
    found = suggest_lr([10.0**i for i in range(len(losses))], losses)
    assert set(found.values()) == {None}
