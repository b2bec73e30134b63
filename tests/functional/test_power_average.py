"""Power-function averages against sums over a toy training, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_tuning.functional import ema_update_, gamma_of, power_decay, power_shares, sigma_rel_of


def shares_of_steps(steps, gamma):
    """The share of each step's weights in the average, from the profile's integral over each step."""
    edges = np.arange(steps + 1) / steps
    return np.diff(edges ** (gamma + 1))


def training(steps=400, seed=0):
    """Weights that come down on a noisy valley: ``[steps, 3]``."""
    noise = np.random.default_rng(seed).normal(size=(steps, 3))
    weights, rows = np.full(3, 5.0), []
    for step in range(steps):
        weights = weights - 0.05 * weights * [0.1, 0.5, 1.0] + 0.1 * noise[step]
        rows.append(weights)
    return np.stack(rows)


@pytest.mark.parametrize("gamma", [0.0, 2.5, 6.94, 16.97])
def test_updates_make_the_average_with_the_profiles_shares(gamma):
    rows = training(50)
    average = [torch.full((3,), math.nan, dtype=torch.float64).zero_()]
    for update, row in enumerate(rows, 1):
        ema_update_(average, [torch.tensor(row)], power_decay(update, gamma))
    np.testing.assert_allclose(average[0], shares_of_steps(50, gamma) @ rows, rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1.0, 6.94, 100.0])
def test_sigma_is_the_standard_deviation_of_the_profile(gamma):
    tau = (np.arange(10**6) + 0.5) / 10**6
    profile = (gamma + 1) * tau**gamma
    mean = (tau * profile).mean()
    assert sigma_rel_of(gamma) == pytest.approx(math.sqrt(((tau - mean) ** 2 * profile).mean()), rel=1e-6)
    assert gamma_of(sigma_rel_of(gamma)) == pytest.approx(gamma, abs=1e-9)


def test_the_papers_two_profiles():
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)


def stored_averages(rows, times, gammas):
    return np.stack([shares_of_steps(t, g) @ rows[:t] for t in times for g in gammas])


@pytest.mark.parametrize(
    ("sigma_rel", "tolerance"),
    [(0.03, 0.01), (0.05, 1e-9), (0.075, 0.001), (0.1, 1e-9), (0.15, 0.005), (0.2, 0.02), (0.25, 0.1)],
)
def test_any_profile_comes_back_from_stored_averages(sigma_rel, tolerance):
    """Of the widest ones a part lies before the first stored average."""
    rows, times, gammas = training(), range(20, 401, 20), (gamma_of(0.05), gamma_of(0.10))
    stored = [(t, g) for t in times for g in gammas]
    shares = power_shares(stored, (400, gamma_of(sigma_rel)))
    made = shares.numpy() @ stored_averages(rows, times, gammas)
    wanted = shares_of_steps(400, gamma_of(sigma_rel)) @ rows
    assert (np.abs(made - wanted) < tolerance * rows[200:].std(0) + 1e-12).all()
    assert shares.dtype == torch.float64
    assert shares.sum().item() == pytest.approx(1.0, abs=0.02)


def test_an_earlier_time_is_reconstructed_too():
    rows, times, gammas = training(), range(20, 401, 20), (gamma_of(0.05), gamma_of(0.10))
    stored = [(t, g) for t in times for g in gammas]
    made = power_shares(stored, (290, 10.0)).numpy() @ stored_averages(rows, times, gammas)
    np.testing.assert_allclose(made, shares_of_steps(290, 10.0) @ rows[:290], atol=0.02)


def test_the_shares_are_the_nearest_there_are():
    """No step of any share brings the profile nearer: the integral is taken numerically."""
    stored, wanted = [(10, 3.0), (10, 8.0), (6, 3.0)], (10, 5.0)
    tau = (np.arange(20000) + 0.5) / 2000

    def profile(time, gamma):
        return np.where(tau <= time, (gamma + 1) * tau**gamma / time ** (gamma + 1), 0)

    def distance(shares):
        return ((sum(s * profile(*k) for s, k in zip(shares, stored, strict=True)) - profile(*wanted)) ** 2).mean()

    shares = power_shares(stored, wanted).numpy()
    best = distance(shares)
    for i in range(3):
        for change in (-0.01, 0.01):
            moved = shares.copy()
            moved[i] += change
            assert distance(moved) > best


def test_an_average_that_is_stored_twice_does_no_harm():
    stored = [(t, g) for t in range(100, 2001, 100) for g in (6.94, 16.97)]
    once = power_shares(stored, (2000, 10.0))
    twice = power_shares([*stored, stored[-1]], (2000, 10.0))
    torch.testing.assert_close(twice[:-2], once[:-1], rtol=1e-5, atol=1e-6)
    assert (twice[-2] + twice[-1]).item() == pytest.approx(once[-1].item(), rel=1e-5)


def test_with_many_averages_the_factors_stay_small():
    stored = [(t, g) for t in range(100, 10001, 100) for g in (6.94, 16.97)]
    assert power_shares(stored, (10000, 10.0)).abs().sum() < 10
