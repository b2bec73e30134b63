"""What counts as a spike among the values of the last steps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

_LEAST_SPREAD = 0.01
_DEVIATION_OF_MAD = 1.4826


def spike_threshold(values: Collection[float], sigma: float, robust: bool = False) -> float:
    """The value above which a further one is a spike: ``center + sigma * max(spread, 0.01 * |center|)``.

    The lower bound of the spread keeps values that hardly change from making a spike of every small step.

    Args:
        values: Those of earlier steps, at least one.
        sigma: How many spreads are allowed, > 0.
        robust: Whether center and spread are the median and 1.4826 times the median absolute deviation (which is the
            standard deviation if the values are normal), and not the mean and the standard deviation.

    Example:
        >>> spike_threshold([1.0, 2.0, 3.0, 2.0], sigma=2)
        3.414213562373095
        >>> round(spike_threshold([1.0, 2.0, 3.0, 100.0], sigma=2, robust=True), 4)
        5.4652
        >>> spike_threshold([2.0, 2.0], sigma=5)
        2.1
    """
    # Not numpy, which takes five times as long for so few values between two training steps.
    if robust:
        center = _median(sorted(values))
        spread = _DEVIATION_OF_MAD * _median(sorted(abs(value - center) for value in values))
    else:
        center = math.fsum(values) / len(values)
        spread = math.dist([*values], [center] * len(values)) / math.sqrt(len(values))
    return center + sigma * max(spread, _LEAST_SPREAD * abs(center))


def _median(ordered: Sequence[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
