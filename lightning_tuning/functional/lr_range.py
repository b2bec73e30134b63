"""What a learning-rate range test says: smoothed losses, and the rates that several rules read from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

LR_RULES = ("steepest", "minimum", "valley", "divergence")


def lr_sweep(low: float, high: float, steps: int, mode: str = "exponential") -> list[float]:
    """Learning rates from ``low`` to ``high``.

    Args:
        low: The first one, > 0.
        high: The last one, above ``low``.
        steps: How many, at least 2.
        mode: ``exponential``: equal ratios between neighbours; ``linear``: equal differences.

    Example:
        >>> lr_sweep(0.01, 1.0, 3), lr_sweep(0.5, 1.5, 3, "linear")
        ([0.01, 0.1, 1.0], [0.5, 1.0, 1.5])
    """
    shares = [step / (steps - 1) for step in range(steps)]
    if mode == "linear":
        return [low + share * (high - low) for share in shares]
    return [low * (high / low) ** share for share in shares]


def smoothed(values: Sequence[float], momentum: float) -> list[float]:
    """Exponential moving averages, each divided by the sum of its weights, so that the first values are not drawn
    towards 0: ``s_t = (1 - m) * sum_k m^(t - k) * v_k / (1 - m^t)``, with t and k counted from 1.

    Args:
        values: The values.
        momentum: ``m``, share of the old average, in [0, 1).

    Example:
        >>> smoothed([4.0, 4.0, 1.0], 0.5)
        [4.0, 4.0, 2.2857142857142856]
    """
    average, averages = 0.0, []
    for count, value in enumerate(values, start=1):
        average = momentum * average + (1 - momentum) * value
        averages.append(average / (1 - momentum**count))
    return averages


def has_diverged(loss: float, best: float, factor: float) -> bool:
    """Whether a loss is above ``factor`` times the best one; with losses below 0, as far above it as that would be.

    Example:
        >>> has_diverged(4.1, 1.0, 4.0), has_diverged(0.9, -1.0, 4.0), has_diverged(2.1, -1.0, 4.0)
        (True, False, True)
    """
    return not math.isfinite(loss) or loss - best > (factor - 1) * abs(best)


def longest_fall(values: Sequence[float]) -> list[int]:
    """The positions of the longest strictly falling subsequence; of several the one that ends first.

    Example:
        >>> longest_fall([5.0, 6.0, 4.0, 4.5, 3.0, 7.0])
        [0, 2, 4]
    """
    lengths, before = [1] * len(values), [-1] * len(values)
    for i, value in enumerate(values):
        for j in range(i):
            if values[j] > value and lengths[j] >= lengths[i]:
                lengths[i], before[i] = lengths[j] + 1, j
    position = lengths.index(max(lengths)) if lengths else -1
    fall = []
    while position >= 0:
        fall.append(position)
        position = before[position]
    return fall[::-1]


def suggest_lr(
    lrs: Sequence[float], losses: Sequence[float], diverged_at: float | None = None, fraction: float = 0.1
) -> dict[str, float | None]:
    """Learning rates for training, by several rules.

    The first tenth of the points is left out, where the average is of few losses.

    - ``steepest``: where the loss falls fastest over the logarithm of the rate, before its minimum;
    - ``minimum``: a tenth of the rate at the minimum;
    - ``valley``: the middle of the longest fall of the loss;
    - ``divergence``: a fraction of the rate at which the loss diverged.

    Args:
        lrs: Rising rates, > 0.
        losses: The smoothed loss that each has led to.
        diverged_at: The rate at which the loss diverged; None: it did not.
        fraction: For ``divergence``, in (0, 1].

    Returns:
        For each rule its rate; None where it finds none, as where the loss never fell.

    Example:
        >>> lrs = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]
        >>> suggest_lr(lrs, [2.3, 2.2, 2.0, 0.9, 0.5, 4.0], diverged_at=10.0)
        {'steepest': 0.1, 'minimum': 0.1, 'valley': 0.01, 'divergence': 1.0}
    """
    skip = len(lrs) // 10
    lrs, losses = lrs[skip:], losses[skip:]
    found: dict[str, float | None] = dict.fromkeys(LR_RULES)
    if diverged_at is not None and losses:
        found["divergence"] = fraction * diverged_at
    lowest = min(range(len(losses)), key=losses.__getitem__) if losses else 0
    if lowest == 0:  # the loss never fell
        return found
    fall = longest_fall(losses)
    found["valley"] = lrs[fall[(len(fall) - 1) // 2]]
    found["steepest"] = lrs[_steepest([math.log(lr) for lr in lrs], losses, lowest)]
    found["minimum"] = lrs[lowest] / 10
    return found


def _steepest(x: Sequence[float], y: Sequence[float], end: int) -> int:
    """Where y falls fastest over x up to the position ``end``: by the difference over a tenth of the points, or single
    steps of a noisy loss would win."""
    reach = max(len(y) // 20, 1)
    around = [(max(i - reach, 0), min(i + reach, len(y) - 1)) for i in range(end + 1)]
    slopes = [(y[right] - y[left]) / (x[right] - x[left]) for left, right in around]
    return min(range(len(slopes)), key=slopes.__getitem__)
