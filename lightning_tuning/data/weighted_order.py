"""Weighted sampling as a function of its arguments alone, to take the place of a permutation."""

from __future__ import annotations

import numpy as np

from lightning_tuning.data.hashing import hashes, permutation
from lightning_tuning.errors import InvalidValueError, check_count, check_range


def weighted_order(
    weights: np.ndarray,
    count: int,
    seed: int,
    purpose: str,
    epoch: int = 0,
    number: int = 0,
    *,
    labels: np.ndarray | None = None,
) -> np.ndarray:
    """Draw samples with replacement, each in proportion to its weight, in random order.

    Systematic resampling: the weights are laid end to end, ``count`` equally spaced points with one random offset are
    put on them, and a sample is drawn once for each point on its stretch. So a sample that should be drawn
    ``e = count * weight / sum(weights)`` times is drawn ``floor(e)`` or ``ceil(e)`` times, on average over the epochs
    ``e`` times. Samples of equal weight lie side by side, in random order, so the same holds for all samples of a
    weight together, and with ``labels`` for each class.

    The whole order depends on ``count``: the first draws of a longer one are others. Take one call for an epoch.

    Args:
        weights: At least 0 and finite, not all 0, ``[N]``. Only their proportions matter.
        count: Number of draws, at least 0.
        seed: The run's seed, 0 to 2**32 - 1.
        purpose: What the draws are for; those of two purposes are unrelated.
        epoch: The epoch, at least 0.
        number: Tells apart several draws of the same purpose and epoch.
        labels: Class ids ``[N]``, whose shares are to be exact up to rounding. None: the weights tell the classes
            apart, as those of :func:`balanced_weights` do where no two classes are equally large.

    Returns:
        Indices, int64 ``[count]``.

    Raises:
        InvalidValueError: The weights or labels are no such arrays.

    Source: Douc and Cappe, 2005, "Comparison of resampling schemes for particle filtering" (systematic resampling).

    Example:
        >>> order = weighted_order(np.array([1.0, 0.0, 3.0]), 8, seed=0, purpose="order")
        >>> np.bincount(order).tolist()
        [2, 0, 6]
    """
    weights = _checked(weights)
    check_count("count", count, 0)
    classes = weights if labels is None else np.asarray(labels)
    if classes.shape != weights.shape:
        raise InvalidValueError(f"labels is {list(classes.shape)} and weights {list(weights.shape)}; both must be [N].")
    line = permutation(len(weights), seed, f"{purpose}: line", epoch, number)
    line = line[np.argsort(classes[line], kind="stable")]
    line = line[weights[line] > 0]
    ends = np.cumsum(weights[line])
    # 32 bits and a half: adding it is exact for a million draws, and no point falls on a border between two samples.
    offset = (int(hashes(1, seed, f"{purpose}: offset", epoch, number)[0] >> 32) + 0.5) / 2**32
    points = (np.arange(count) + offset) * (ends[-1] / max(count, 1))
    # Of very many points the last one may be rounded up to the end of the line.
    drawn = line[np.minimum(np.searchsorted(ends, points, side="right"), len(line) - 1)]
    return drawn[permutation(count, seed, purpose, epoch, number)]


def balanced_weights(labels: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Weights that even out the classes: a sample's is 1 by the size of its class, to a power.

    Args:
        labels: Class ids, ``[N]``.
        power: 1: all classes are drawn equally often; 0: as often as they occur; 0.5: by the root of their size.

    Returns:
        float64 ``[N]``.

    Raises:
        InvalidValueError: ``power`` is not in [0, 1], or ``labels`` is not ``[N]``.

    Example:
        >>> balanced_weights(np.array([7, 3, 7, 7, 7]), power=0.5).tolist()
        [0.5, 1.0, 0.5, 0.5, 0.5]
    """
    check_range("power", power, 0.0, 1.0)
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise InvalidValueError(
            f"labels is {list(labels.shape)}; balancing needs one class for each sample, [N]. For other targets give "
            "weights of your own."
        )
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return ((1 / counts) ** power)[inverse]


def _checked(weights: np.ndarray) -> np.ndarray:
    """The weights in float64, the largest 1, so that their sum is finite."""
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 1 or not len(weights):
        raise InvalidValueError(f"weights is {list(weights.shape)}; there must be one for each sample, [N].")
    bad = np.flatnonzero(~((weights >= 0) & (weights < np.inf)))  # NaN fails both
    if len(bad):
        raise InvalidValueError(
            f"weights[{bad[0]}] is {weights[bad[0]]}; every weight must be a number in [0, inf). "
            f"{len(bad)} of {len(weights)} are not."
        )
    if not weights.any():
        raise InvalidValueError("All weights are 0, so nothing can be drawn; give at least one sample a larger one.")
    return weights / weights.max()
