"""What counts as a spike among the values of the last steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_LEAST_SPREAD = 0.01
_DEVIATION_OF_MAD = 1.4826


def spike_threshold(values: Sequence[float], sigma: float, robust: bool = False) -> float:
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
    known = np.asarray(values, dtype=np.float64)
    if robust:
        center = float(np.median(known))
        spread = _DEVIATION_OF_MAD * float(np.median(np.abs(known - center)))
    else:
        center, spread = float(known.mean()), float(known.std())
    return center + sigma * max(spread, _LEAST_SPREAD * abs(center))
