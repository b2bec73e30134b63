"""Shapes against formulas written out, in numpy and float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lightning_tuning.functional.schedule import (
    Plateau,
    between,
    cosine_height,
    drops_factor,
    inverse_sqrt_factor,
    one_cycle_heights,
    place_in_cycle,
    polynomial_height,
    stable_decay_height,
    warmup_height,
)


def test_between_is_exact_at_both_ends():
    for full, end in [(0.1, 0.3), (0.996, 1.0), (1e-3, 7e-7)]:
        assert between(full, end, 1.0) == full
        assert between(full, end, 0.0) == end
        assert between(full, end, 0.25) == pytest.approx(end + 0.25 * (full - end), rel=1e-14)


@pytest.mark.parametrize(
    ("shape", "formula"),
    [
        ("linear", lambda t: t),
        ("sigmoid", lambda t: np.exp(-5 * (1 - t) ** 2)),
        ("cosine", lambda t: 0.5 - 0.5 * np.cos(np.pi * t)),
    ],
)
def test_warmup(shape, formula):
    length = 7.5
    expected = formula(np.minimum(np.arange(1, 11) / length, 1.0))
    assert [warmup_height(shape, step, length) for step in range(10)] == pytest.approx(expected, abs=1e-15)


def test_falls():
    shares = np.linspace(0, 1, 11)
    assert [cosine_height(p) for p in shares] == pytest.approx(np.cos(np.pi * shares / 2) ** 2, abs=1e-15)
    assert [polynomial_height(p, 3) for p in shares] == pytest.approx(1 - 3 * shares + 3 * shares**2 - shares**3)
    assert [inverse_sqrt_factor(t, 40) for t in (0, 120, 360)] == pytest.approx([1, 0.5, 1 / math.sqrt(10)])
    assert [drops_factor(k, 0.3) for k in range(4)] == pytest.approx([1, 0.3, 0.09, 0.027])
    assert [drops_factor(k, 2.0) for k in range(4)] == [1, 2, 4, 8]


def test_vaswanis_formula():
    """lrate = d^-0.5 min(step^-0.5, step warmup^-1.5), its peak divided out; our step ``s`` is its ``s + 1``."""
    warmup = 50
    theirs = [min(n**-0.5, n * warmup**-1.5) * warmup**0.5 for n in range(1, 400)]
    ours = [
        warmup_height("linear", s, warmup) if s < warmup else inverse_sqrt_factor(s + 1 - warmup, warmup)
        for s in range(399)
    ]
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("growth", [1, 1.5, 2, 3])
def test_cycles_are_found_by_walking(growth):
    first, place, expected = 4.0, 0.0, []
    length = first
    for position in range(500):
        while position - place >= length:
            place, length = place + length, length * growth
        expected.append((position - place) / length)
    assert [place_in_cycle(position, first, growth) for position in range(500)] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("form", ["linear", "sqrt", "cosine"])
def test_stable_decay(form):
    total, decay = 20, 8
    for step in range(total + 1):
        q = max(step - (total - decay), 0) / decay
        expected = {"linear": 1 - q, "sqrt": 1 - q**0.5, "cosine": 0.5 + 0.5 * math.cos(math.pi * q)}[form]
        assert stable_decay_height(form, total - step, decay) == pytest.approx(expected, abs=1e-15)


def test_one_cycle_without_a_rise_only_falls():
    heights = [one_cycle_heights(t, 10, 0.5) for t in range(10)]
    assert heights[0] == (False, 1.0)
    assert heights[-1] == (False, 0.0)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize(("patience", "cooldown", "threshold"), [(0, 0, 1e-4), (2, 0, 0.05), (1, 3, 0.01)])
def test_plateau_drops_when_torchs_scheduler_does(mode, patience, cooldown, threshold):
    generator = np.random.default_rng(3)
    metrics = np.abs(np.cumsum(generator.normal(-0.01 if mode == "min" else 0.01, 0.1, 200)) + 5)
    metrics[17] = math.nan
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    settings = {"mode": mode, "factor": 0.5, "patience": patience, "threshold": threshold, "cooldown": cooldown}
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=0, eps=0, **settings)
    ours = Plateau()
    for metric in metrics:
        theirs.step(metric)
        ours = ours.after(float(metric), patience, threshold, cooldown, mode)
        assert optimizer.param_groups[0]["lr"] == 0.5**ours.drops
    assert ours.drops > 3


def test_a_negative_loss_improves_downwards():
    """``ReduceLROnPlateau`` takes -1 * (1 - threshold) for the bound, so that a worse loss would improve."""
    state = Plateau()
    for loss in (-1.0, -0.99995, -0.9999):
        state = state.after(loss, patience=1)
    assert (state.drops, state.best) == (1, -1.0)
