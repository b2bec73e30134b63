"""The decision to stop, check by check, against tables worked out by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional.smoothing import Smoothing, check_smoothing
from lightning_tuning.functional.stopping import MetricRule, Position, Span, Stop, StopRule, StopState

NAN, INF = math.nan, math.inf


def run(rule, rows, positions=None, through_json=False):
    """The decision after each check, up to the first stop."""
    state, verdicts = StopState(), []
    for number, values in enumerate(rows, start=1):
        now = positions[number - 1] if positions else Position(number)
        state = rule.advance(state, values if isinstance(values, (list, tuple)) else [values], now)
        if through_json:
            state = StopState.of_plain(json.loads(json.dumps(state.plain())))
        verdicts.append(rule.verdict(state))
        if verdicts[-1]:
            break
    return verdicts, state


def stops_at(rule, rows, **kwargs):
    """The check that stops, counted from 1, and why."""
    verdicts, _ = run(rule, rows, **kwargs)
    return (len(verdicts), verdicts[-1].reason) if verdicts[-1] else None


def one(mode="min", delta=0.0, relative=False, target=None, limit=None, patience=2, unit="checks", **kwargs):
    return StopRule((MetricRule(mode, delta, relative, target, limit),), Span(patience, unit), **kwargs)


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        # Improvements at 1, 2, 4; then 5 and 6 without one.
        (one(patience=2), [5, 4, 4.5, 3, 3, 3.5, 1], (6, "patience")),
        (one(patience=3), [6, 5, 5, 5, 5, 5], (5, "patience")),
        (one(patience=1), [6, 5, 4, 4, 3], (4, "patience")),
        (one(patience=0), [6, 5, 4, 5], (4, "patience")),  # the first check without improvement
        (one(patience=0), [6, 5, 4, 3], None),
        (one("max", patience=2), [1, 2, 2, 1, 5], (4, "patience")),
        (one("max", patience=2), [1, 2, 3, 4, 5], None),
        # An improvement has to be larger than min_delta, not as large; small ones add up.
        (one(delta=1.0, patience=2), [5, 4, 4, 3], (3, "patience")),
        (one(delta=1.0, patience=3), [5, 4.4, 3.9, 3.3, 2.8], None),
        (one("max", delta=0.5, patience=2), [1, 1.5, 1.4], (3, "patience")),
        # Relative: 10 % of 100 is 10, of 89 it is 8.9.
        (one(delta=0.1, relative=True, patience=2), [100, 91, 89, 80.5, 80.2], (5, "patience")),
        (one(delta=0.1, relative=True, patience=2), [100, 91, 89, 80.5, 80.0], None),
        (one("max", delta=0.1, relative=True, patience=1), [-100, -91], (2, "patience")),  # below zero
        (one("max", delta=0.1, relative=True, patience=1), [-100, -89], None),
        # Thresholds: reached is good enough, worse than the limit is too bad.
        (one(target=2.0), [4, 3, 2, 1], (3, "target")),
        (one("max", target=0.9, patience=9), [0.5, 0.89, 0.9], (3, "target")),
        (one(limit=8.0, patience=9), [4, 8, 9], (3, "divergence")),
        (one("max", limit=0.2, patience=9), [0.5, 0.2, 0.1], (3, "divergence")),
        # Not finite: stops at once, or is a check without improvement.
        (one(), [4, NAN, 1], (2, "not_finite")),
        (one(), [4, INF, 1], (2, "not_finite")),
        (one("max"), [4, INF, 1], (2, "not_finite")),
        (one(check_finite=False), [4, NAN, 3, NAN, -INF, 1], (5, "patience")),
        (one("max", check_finite=False, patience=2), [NAN, NAN, NAN], (3, "patience")),
        (one(check_finite=False, smoothing=Smoothing("ema", 0.5)), [4, NAN, 2, 1, 0.5], None),
        # Grace: the first two checks are not looked at, though 1.0 would be the best.
        (one(start_from=Span(2), patience=2), [1, 1, 5, 4, 4, 4], (6, "patience")),
        (one(start_from=Span(2), limit=4.0), [9, 9, 3, 2, 1], None),
        (one(start_from=Span(2), target=1.0), [1, 1, 3, 2, 1], (5, "target")),
        (one(start_from=Span(2)), [1, NAN], (2, "not_finite")),
    ],
)
def test_one_metric(rule, values, expected):
    assert stops_at(rule, values) == expected
    assert stops_at(rule, values, through_json=True) == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        # The best is at check 2: step 20, epoch 1.0. Checks at steps 10, 20, 30, ... and epochs 0.5, 1.0, 1.5, ...
        (one(patience=3), 5),
        (one(patience=30, unit="steps"), 5),
        (one(patience=31, unit="steps"), 6),
        (one(patience=2.0, unit="epochs"), 6),
        (one(patience=0.3, unit="epochs"), 3),
        (one(patience=2, start_from=Span(25, "steps")), 5),  # check 3 is the first
        (one(patience=2, start_from=Span(30, "steps")), 5),
        (one(patience=2, start_from=Span(2.0, "epochs")), 6),
    ],
)
def test_patience_and_grace_in_steps_and_epochs(rule, expected):
    positions = [Position(i, 10 * i, i / 2) for i in range(1, 10)]
    assert stops_at(rule, [3, 1, 2, 2, 2, 2, 2, 2, 2], positions=positions) == (expected, "patience")


def test_sums_of_parts_of_an_epoch_lose_no_check():
    positions = [Position(i, i, sum([0.1] * i)) for i in range(1, 30)]
    assert positions[6].epochs - positions[3].epochs < 0.3  # so much for floating point
    verdicts, _ = run(one(patience=0.3, unit="epochs"), [9, 8, 7, 6, 6, 6, 6, 6, 6], positions)
    assert len(verdicts) == 7


BOTH = (MetricRule("min"), MetricRule("max"))


@pytest.mark.parametrize(
    ("rule", "rows", "expected"),
    [
        # Loss: best at 1. Accuracy: best at 3.
        (StopRule(BOTH, Span(2), "any"), [(1, 1), (2, 2), (2, 3), (2, 3), (2, 3)], (3, (0,))),
        (StopRule(BOTH, Span(2), "all"), [(1, 1), (2, 2), (2, 3), (2, 3), (2, 3)], (5, (0, 1))),
        (StopRule(BOTH, Span(2), "all"), [(1, 1), (2, 1), (2, 2), (0.5, 2), (1, 2), (1, 2)], (6, (0, 1))),
    ],
)
def test_any_and_all_of_several_metrics(rule, rows, expected):
    verdicts, _ = run(rule, rows)
    assert (len(verdicts), verdicts[-1]) == (expected[0], Stop("patience", expected[1]))


def test_targets_are_combined_as_patience_is_and_dangers_never_wait():
    rules = (MetricRule("min", target=1.0, limit=9.0), MetricRule("max", target=0.9))
    rows = [(2, 0.5), (1, 0.5), (2, 0.9), (0.5, 0.95)]
    assert stops_at(StopRule(rules, Span(9), "any"), rows) == (2, "target")
    assert stops_at(StopRule(rules, Span(9), "all"), rows) == (4, "target")  # both at the same check
    alone = (rules[0], MetricRule("max"))
    assert stops_at(StopRule(alone, Span(9), "all"), rows) == (2, "target")  # the other one has no target
    assert stops_at(StopRule(rules, Span(9), "all"), [(2, 0.5), (10, 0.5)]) == (2, "divergence")
    assert stops_at(StopRule(rules, Span(9), "all"), [(2, 0.5), (2, NAN)]) == (2, "not_finite")


@pytest.mark.parametrize(
    ("rule", "rows", "expected"),
    [
        # Values and training values; the gap is wide (above 1) at 3, 4 and from 6 on.
        (one(patience=3, max_gap=1.0), [(5, 5), (4, 4), (3.5, 2), (3, 1), (2, 1.5), (1.9, 0), (1.8, 0), (1.7, 0)], 8),
        (one(patience=2, max_gap=1.0), [(5, 5), (4, 4), (3.5, 2), (3, 1), (2, 1.5)], 4),
        (one(patience=9, max_gap=1.0), [(5, 5), (4, 4), (3.5, 2), (3, 1)], None),
        (one(patience=1, max_gap=1.0), [(3, 2), (2.5, 1.5)], None),  # as wide as allowed
        (one("max", patience=1, max_gap=0.1), [(0.8, 0.85), (0.85, 0.96)], 2),
        (one("max", patience=1, max_gap=0.1), [(0.8, 0.85), (0.96, 0.85)], None),  # better than in training
        (one(patience=1, max_gap=0.5, relative=True), [(3, 2), (2.9, 1.9)], 2),  # 1.0 is more than half of 1.9
        (one(patience=1, max_gap=0.6, relative=True), [(3, 2), (2.9, 1.9)], None),
    ],
)
def test_the_gap_to_training(rule, rows, expected):
    found = stops_at(rule, rows)
    assert found == (expected and (expected, "gap"))


def test_the_best_value_is_the_best_even_where_min_delta_takes_no_notice():
    _, state = run(one(delta=1.0, patience=9), [5.0, 4.5, 4.2, 4.4])
    track = state.tracks[0]
    assert (track.reference, track.since) == (5.0, Position(1))
    assert (track.best, track.best_at) == (4.2, Position(3))
    assert not state.is_best
    _, state = run(one(delta=1.0, patience=9), [5.0, 4.5])
    assert state.is_best


def test_in_the_grace_period_nothing_is_best():
    _, state = run(one(start_from=Span(2)), [1.0, 2.0])
    assert not state.is_best
    assert state.tracks[0].best is None


def test_smoothing_is_the_weighted_mean_and_the_median_of_all_there_are():
    values = np.random.default_rng(0).normal(size=9)
    for decay in (0.0, 0.6, 0.95):
        memory, found = (), []
        for value in values:
            memory, smooth = Smoothing("ema", decay).add(memory, value)
            found.append(smooth)
        weights = [decay ** np.arange(n)[::-1] for n in range(1, 10)]
        np.testing.assert_allclose(found, [np.average(values[: len(w)], weights=w) for w in weights], rtol=1e-12)
    for size in (1, 2, 5):
        memory, found = (), []
        for value in values:
            memory, smooth = Smoothing("median", size).add(memory, value)
            found.append(smooth)
        np.testing.assert_allclose(found, [np.median(values[max(0, n - size) : n]) for n in range(1, 10)])


def test_decisions_are_on_the_smoothed_value():
    # Medians of 3: 4, 3.5, 3, 3, 3. The outlier 0.1 neither improves nor reaches the target.
    rule = one(patience=2, smoothing=Smoothing("median", 3), target=0.2)
    verdicts, state = run(rule, [4, 3, 0.1, 3.2, 3.3])
    assert (len(verdicts), verdicts[-1].reason) == (5, "patience")
    assert (state.tracks[0].best, state.tracks[0].best_at) == (3, Position(3))


def test_the_share_of_the_patience_that_is_used():
    rule = StopRule(BOTH, Span(4), "all")
    _, state = run(rule, [(1, 1), (2, 2), (2, 1), (2, 1)])  # 3 and 2 checks ago
    assert rule.used(state) == 0.5
    assert rule._replace(combine="any").used(state) == 0.75
    assert rule.used(StopState()) == 0.0


@pytest.mark.parametrize("text", ["ema", "ema 1", "ema -0.1", "median 0", "median 2.5", "mean 3", "ema 0.9.1", 5])
def test_what_smooths_nothing_is_refused(text):
    with pytest.raises(InvalidValueError, match=r"^smoothing is .*'ema 0.9'.*'median 5'"):
        check_smoothing("smoothing", text)


def test_what_smooths():
    assert check_smoothing("smoothing", None) is None
    assert check_smoothing("smoothing", "ema 0.9") == Smoothing("ema", 0.9)
    assert check_smoothing("smoothing", " median  5 ") == Smoothing("median", 5)
